"""Bytes of weights, gradients, optimizer and moving average of one rank, for ZeRO stages 0 to 3.

Counted from the recipe's parameters and from what DeepSpeed 0.19.8 keeps per stage (measured by
the tests on real engines). The parameters are those of the networks themselves, built without
memory on PyTorch's meta device.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from poa_ds.engine import optim
from poa_ds.methods.method import method
from poa_ds.plan import distillation
from poa_ds.recipe.tree import Recipe

FLOAT = 4
MOMENTS = 2  # exp_avg and exp_avg_sq
# defaults of DeepSpeed 0.19.8's zero_optimization, in elements
BUCKET = 500_000_000  # reduce_bucket_size
PREFETCH = 50_000_000  # stage3_prefetch_bucket_size
PERSISTENCE = 100_000  # stage3_param_persistence_threshold


@dataclass(frozen=True)
class Network:
    """Elements of the student's parameters, group by group as the optimizer has them.

    modules: per group the part of the student it belongs to ("backbone", "heads", "ibot_heads").
    averages: per group whether the teacher holds its moving average. gathered: of the largest
    module whose parameters ZeRO-3 gathers together. frozen: of a teacher from a file, on each rank.
    queue: numbers beside the parameters in a checkpoint.
    """

    groups: tuple[tuple[int, ...], ...]
    modules: tuple[str, ...]
    averages: tuple[bool, ...]
    gathered: int
    frozen: int = 0
    queue: int = 0

    @property
    def parameters(self) -> int:
        return sum(map(sum, self.groups))

    @property
    def averaged(self) -> int:
        """Parameters whose moving average is kept."""
        return self.over(map(sum, self.groups))

    def over(self, numbers: Iterable[int]) -> int:
        """The sum of numbers, one per group, over the groups that are averaged."""
        return sum(n for n, averaged in zip(numbers, self.averages, strict=True) if averaged)

    def of(self, module: str) -> int:
        """Parameters of one part of the student."""
        pairs = zip(self.groups, self.modules, strict=True)
        return sum(sum(group) for group, name in pairs if name == module)


def network(recipe: Recipe) -> Network:
    """The parameters of the recipe's student."""
    with torch.device("meta"):
        networks = method(recipe).networks()
    groups = optim.parameter_groups(networks.trained().items(), averaged=networks.averaged())
    whole = tuple(networks.leaves())
    modules = [*networks.student.modules()]
    together = [[*m.parameters(recurse=isinstance(m, whole))] for m in modules]
    frozen, queue = 0, 0
    if distillation.is_frozen(recipe):
        frozen, queue = distillation.cost(recipe).parameters, distillation.queue(recipe)
    return Network(
        tuple(tuple(p.numel() for p in group["params"]) for group in groups),
        tuple(group["module"] for group in groups),
        tuple(group["averaged"] for group in groups),
        max(sum(p.numel() for p in parameters) for parameters in together),
        frozen,
        queue,
    )


@dataclass(frozen=True)
class State:
    """Bytes of one rank; those of the rank that has most. buffers: of the communication."""

    weights: float
    gradients: float
    optimizer: float
    teacher: float
    buffers: float


@dataclass(frozen=True)
class Layout:
    """How a run is cut. own_slots: of one rank. file: the resolved DeepSpeed configuration."""

    stage: int
    world: int
    own_slots: int
    precision: str
    file: Mapping[str, Any]

    @property
    def bytes_per_number(self) -> int:
        """Of a weight in the forward pass."""
        return FLOAT if self.precision == "fp32" else 2

    @property
    def bytes_per_sum(self) -> int:
        """Of an element of the summed gradients."""
        kinds = {None: self.bytes_per_number, "fp32": FLOAT, "bf16": 2, "fp16": 2}
        return kinds[self.file.get("data_types", {}).get("grad_accum_dtype")]

    def zero(self, key: str, default: Any) -> Any:
        """A value of zero_optimization, or DeepSpeed's default."""
        found = self.file.get("zero_optimization", {}).get(key, default)
        return default if found in (None, "auto") else found


def of_rank(network: Network, layout: Layout) -> State:
    """The bytes of one rank while the backward pass of its last slot begins."""
    frozen = network.frozen * layout.bytes_per_number  # outside of the engine in every stage
    if layout.stage == 0:
        whole, averaged = network.parameters * FLOAT, network.averaged * FLOAT
        # the weights are the fp32 masters, and the fp32 teacher is state and weights
        return State(whole, whole, MOMENTS * whole + averaged, averaged + frozen, 0.0)
    found = _stage_3(network, layout) if layout.stage == 3 else _stages_1_2(network, layout)
    return replace(found, teacher=found.teacher + frozen)


def _stages_1_2(network: Network, layout: Layout) -> State:
    b, world = layout.bytes_per_number, layout.world
    # flat groups are padded to two elements for each rank
    flats = [-(-sum(group) // (2 * world)) * 2 * world for group in network.groups]
    whole, part = sum(flats), sum(flats) // world
    averaged = network.over(flats)
    if layout.stage == 1 and layout.own_slots > 1:
        gradients = network.parameters * b  # of the slots before stay whole
    elif layout.bytes_per_sum > b:
        gradients = part * layout.bytes_per_sum
    else:
        gradients = _touched(network.groups, flats, world) * b
    buffers = layout.zero("reduce_bucket_size", BUCKET) * b
    buffers *= 2 if layout.zero("overlap_comm", False) else 1
    optimizer = ((1 + MOMENTS) * part + averaged // world) * FLOAT
    return State(whole * b, gradients, optimizer, averaged * b, buffers)


def _touched(groups: Sequence[Sequence[int]], flats: Sequence[int], world: int) -> int:
    """Elements of the parameters that reach into a rank's partitions; of the rank with most.

    A parameter at the border is kept whole by both neighbours.
    """
    most = 0
    for rank in range(world):
        total = 0
        for group, flat in zip(groups, flats, strict=True):
            low, high, first = flat // world * rank, flat // world * (rank + 1), 0
            for count in group:
                total += count if first < high and first + count > low else 0
                first += count
            total += max(0, high - max(first, low))  # padding
        most = max(most, total)
    return most


def _stage_3(network: Network, layout: Layout) -> State:
    b, world = layout.bytes_per_number, layout.world
    parts = [sum(-(-count // world) for count in group) for group in network.groups]
    part, averaged = sum(parts), network.over(parts)
    persistent = _persistent(network, layout)  # the student's stay gathered
    ahead = layout.zero("stage3_prefetch_bucket_size", PREFETCH)
    gathered = min(network.parameters, ahead + network.gathered)
    buffers = (layout.zero("reduce_bucket_size", BUCKET) + gathered) * b
    return State(
        (part + (persistent if world > 1 else 0)) * b,
        part * layout.bytes_per_sum,
        ((1 + MOMENTS) * part + averaged) * FLOAT,
        averaged * b,
        buffers,
    )


def _persistent(network: Network, layout: Layout) -> int:
    """Elements of the parameters that ZeRO-3 does not cut (`persistent` ones)."""
    threshold = layout.zero("stage3_param_persistence_threshold", PERSISTENCE)
    return sum(count for group in network.groups for count in group if count < threshold)


def checkpoint_bytes(network: Network) -> int:
    """Bytes of the tensors of a checkpoint, over all ranks and in any stage."""
    return ((1 + MOMENTS) * network.parameters + network.averaged + network.queue) * FLOAT


@dataclass(frozen=True)
class Traffic:
    """Bytes of one step's collectives, as the sum of the whole tensors; see `sent`.

    reduced: summed up on all ranks, scattered: summed up and cut, gathered: put together.
    """

    reduced: float
    scattered: float
    gathered: float

    def sent(self, world: int) -> float:
        """Bytes that each rank sends, and receives, by the ring algorithms."""
        whole = 2 * self.reduced + self.scattered + self.gathered
        return whole * (world - 1) / world


def traffic(network: Network, layout: Layout) -> Traffic:
    """What a step's collectives carry; small vectors (norms, Sinkhorn) are left out."""
    b, whole = layout.bytes_per_number, network.parameters
    if layout.world == 1 or layout.stage == 0:
        return Traffic(0.0, 0.0, 0.0)
    if layout.stage == 3:
        # the teacher's forward, the students' forward and backward, for every slot; small weights
        # after the step; what was fetched ahead in vain where the teachers' turn ends, and begins
        persistent = _persistent(network, layout)
        ahead = min(whole - persistent, layout.zero("stage3_prefetch_bucket_size", PREFETCH))
        forwards = 2 * whole + network.averaged
        gathered = layout.own_slots * forwards + persistent + 2 * ahead
        return Traffic(0.0, layout.own_slots * whole * b, gathered * b)
    times = layout.own_slots if layout.stage == 2 else 1
    # DeepSpeed reduces whole buckets and keeps its part; then weights and teacher are gathered
    return Traffic(times * whole * b, 0.0, (whole + network.averaged) * b)
