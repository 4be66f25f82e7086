"""The whole plan of a run: what follows from a recipe, a DeepSpeed file and a cluster."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from poa_ds.plan import activations as plan_saved
from poa_ds.plan import state as plan_state
from poa_ds.plan import step_time as plan_time
from poa_ds.plan.activations import Slot
from poa_ds.plan.constants import GENERAL, GIB
from poa_ds.plan.state import Layout, Network, State
from poa_ds.plan.step_time import POLICIES, Cluster, Draws, StepTime
from poa_ds.recipe import derived, ds_json
from poa_ds.recipe.derived import Derived
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. activations: all kept; recomputed: with activation checkpointing.

    refused: why the training would not start with this stage; "" if it would.
    """

    stage: int
    state: State
    activations: float
    recomputed: float
    losses: float
    framework: float
    refused: str

    def total(self, activations: float) -> float:
        """With either kind of activations, and what the allocator loses."""
        parts = [*dataclasses.astuple(self.state), activations, self.losses]
        return sum(parts) * (1 + GENERAL["fragments"].value) + self.framework


@dataclass(frozen=True)
class Times:
    """A step of one stage. published: seconds, if no faster than the published run was."""

    stage: int
    step: StepTime
    published: float


@dataclass(frozen=True)
class Loader:
    """Images per second of a node and processes that make them; has: those of the recipe."""

    images_per_second: float
    workers: int
    has: int


@dataclass(frozen=True)
class Plan:
    """Everything that the command says. images_from: where the number of images comes from."""

    source: str
    recipe: Recipe
    cluster: Cluster
    derived: Derived
    images_from: str
    network: Network
    largest: Slot
    memory: tuple[Memory, ...]
    times: tuple[Times, ...]
    draws: dict[str, Draws]
    loader: Loader
    named: dict[str, dict[str, float]]  # the activations and losses one by one
    images_per_core: float

    def fits(self, memory: Memory, activations: float) -> bool:
        return memory.total(activations) <= self.cluster.gpu.memory.value * GIB


@dataclass(frozen=True)
class Request:
    """What a plan is made for. ds_file: a DeepSpeed file's content, ds_name: its name."""

    source: str
    recipe: Recipe
    cluster: Cluster
    images: int
    images_from: str
    images_per_core: float
    ds_file: dict[str, Any]
    ds_name: str


def made(request: Request) -> Plan:
    """The plan of a request whose number of GPUs divides the slots."""
    recipe, cluster = request.recipe, request.cluster
    network = plan_state.network(recipe)
    drawn = {policy: plan_time.draws(recipe, policy, cluster.world) for policy in POLICIES}
    _, largest = max(plan_saved.largest(recipe), key=lambda pair: pair[0])
    layouts = [_layout(request, stage) for stage in STAGES]
    known = (cluster, drawn[recipe.draws])
    times = tuple(
        Times(
            layout.stage,
            plan_time.step_time(recipe, network, layout, *known),
            plan_time.like_published(recipe, layout, *known),
        )
        for layout, refused in layouts
        if not refused
    )
    counted = plan_saved.backbone(largest)
    return Plan(
        source=request.source,
        recipe=recipe,
        cluster=cluster,
        derived=derived.of(recipe, request.images),
        images_from=request.images_from,
        network=network,
        largest=largest,
        memory=tuple(_memory(network, layout, largest, refused) for layout, refused in layouts),
        times=times,
        draws=drawn,
        loader=_loader(recipe, cluster, times, request.images_per_core),
        named={
            "activations": counted.all_kept(),
            "recomputed": counted.recomputed(),
            "losses": _losses(largest, recipe.batch.slots // cluster.world),
        },
        images_per_core=request.images_per_core,
    )


def _layout(request: Request, stage: int) -> tuple[Layout, str]:
    """(one stage, why the training would refuse it); a refused one is counted all the same."""
    recipe, world, file = request.recipe, request.cluster.world, request.ds_file
    resolved = {**file, "zero_optimization": {**file.get("zero_optimization", {}), "stage": stage}}
    refused = ""
    try:
        resolved = ds_json.resolved(recipe, resolved, world, source=request.ds_name)
    except UsageError as error:
        refused = str(error).removeprefix(f"{request.ds_name}: ")
    precision = recipe.precision if stage else "fp32"
    return Layout(stage, world, recipe.batch.slots // world, precision, resolved), refused


def _losses(slot: Slot, slots: int) -> dict[str, float]:
    return plan_saved.heads_and_losses(slot) | plan_saved.beside(slot, slots)


def _memory(network: Network, layout: Layout, largest: Slot, refused: str) -> Memory:
    recipe = dataclasses.replace(largest.recipe, precision=layout.precision)
    slot = dataclasses.replace(largest, recipe=recipe)
    counted = plan_saved.backbone(slot)
    return Memory(
        layout.stage,
        plan_state.state(network, layout),
        sum(counted.all_kept().values()),
        sum(counted.recomputed().values()),
        sum(_losses(slot, layout.slots).values()),
        GENERAL["framework"].value * GIB,
        refused,
    )


def _loader(recipe: Recipe, cluster: Cluster, times: tuple[Times, ...], per_core: float) -> Loader:
    images = recipe.batch.slots * recipe.batch.images_per_slot / cluster.nodes
    rate = images / min(times, key=lambda t: t.step.total).step.total if times else 0.0
    return Loader(rate, math.ceil(rate / per_core), recipe.data.workers * cluster.per_node)
