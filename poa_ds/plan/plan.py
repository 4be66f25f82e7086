"""The whole plan of a run: what follows from a recipe, a DeepSpeed file and a cluster."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from poa_ds.model.saved import Named
from poa_ds.plan import losses, state, step_time
from poa_ds.plan.constants import GENERAL, GIB
from poa_ds.plan.state import Layout, Network, State
from poa_ds.plan.step_time import POLICIES, Cluster, Draws, StepTime
from poa_ds.plan.students import Students, every_size
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
    refused: str

    @property
    def framework(self) -> float:
        """What a process takes before it has a tensor."""
        return GENERAL["framework"].value * GIB

    @property
    def fragments(self) -> float:
        """What the allocator loses with all activations kept."""
        return self._lost(self.activations)

    def total(self, activations: float) -> float:
        """With either kind of activations."""
        return self._tensors(activations) + self._lost(activations) + self.framework

    def _tensors(self, activations: float) -> float:
        return sum(dataclasses.astuple(self.state)) + activations + self.losses

    def _lost(self, activations: float) -> float:
        return GENERAL["fragments"].value * self._tensors(activations)


@dataclass(frozen=True)
class Parts:
    """Bytes of the largest slot by what they are, for either kind of activations and the losses."""

    activations: Named
    recomputed: Named
    losses: Named


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
    largest: Students
    memory: tuple[Memory, ...]
    times: tuple[Times, ...]
    draws: dict[str, Draws]
    loader: Loader
    parts: Parts
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


def plan(request: Request) -> Plan:
    """The plan of a request whose number of GPUs divides the slots."""
    recipe, cluster = request.recipe, request.cluster
    network = state.network(recipe)
    draws = {policy: step_time.draws(recipe, policy, cluster.world) for policy in POLICIES}
    largest = max(every_size(recipe), key=lambda each: sum(each.saved().all_kept().values()))
    layouts = [_layout(request, stage) for stage in STAGES]
    times = tuple(
        Times(
            layout.stage,
            step_time.step_time(recipe, network, layout, cluster, draws[recipe.draws]),
            step_time.like_published(recipe, layout, cluster, draws[recipe.draws]),
        )
        for layout, refused in layouts
        if not refused
    )
    saved, own_slots = largest.saved(), recipe.batch.slots // cluster.world
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
        draws=draws,
        loader=_loader(recipe, cluster, times, request.images_per_core),
        parts=Parts(saved.all_kept(), saved.recomputed(), _losses(largest, own_slots)),
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


def _losses(students: Students, own_slots: int) -> Named:
    return losses.saved(students) | losses.transient(students, own_slots)


def _memory(network: Network, layout: Layout, largest: Students, refused: str) -> Memory:
    recipe = dataclasses.replace(largest.recipe, precision=layout.precision)
    students = dataclasses.replace(largest, recipe=recipe)
    saved = students.saved()
    return Memory(
        layout.stage,
        state.of_rank(network, layout),
        sum(saved.all_kept().values()),
        sum(saved.recomputed().values()),
        sum(_losses(students, layout.own_slots).values()),
        refused,
    )


def _loader(recipe: Recipe, cluster: Cluster, times: tuple[Times, ...], per_core: float) -> Loader:
    images = recipe.batch.slots * recipe.batch.images_per_slot / cluster.nodes
    rate = images / min(times, key=lambda t: t.step.total).step.total if times else 0.0
    return Loader(rate, math.ceil(rate / per_core), recipe.data.workers * cluster.per_node)
