"""How long a step of a planned run takes: operations over rates, bytes over links, and waiting.

Operations and bytes are counted from the recipe; the rates are those of constants.py, or of a file
of measured ones, so all times are estimates. What waiting costs is computed by drawing sizes as the
training does.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise

from poa_ds.model.space import Policy
from poa_ds.plan import byol, distillation
from poa_ds.plan.constants import GENERAL, GIB, GPUS, Constant, Gpu
from poa_ds.plan.losses import by_rows
from poa_ds.plan.state import Layout, Network, traffic
from poa_ds.plan.students import Students, count, fixed, most_masked
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe

DRAWN_STEPS = 600  # longer than a lap through the menu of any recipe but ResNet's
MOST_DRAWS = 64 * DRAWN_STEPS  # thousands of slots tell as much in fewer steps
POLICIES: tuple[Policy, ...] = ("per_slot", "same", "balanced")
GIGA = 1e9


@dataclass(frozen=True)
class Cluster:
    """network_gbps: of all ports of a node together, Gbit/s in one direction.

    measured: constants in place of those of the kind, by their names in Gpu.
    """

    kind: str
    nodes: int
    per_node: int
    network_gbps: float
    measured: Mapping[str, Constant] = field(default_factory=dict)

    @property
    def gpu(self) -> Gpu:
        return replace(GPUS[self.kind], **self.measured)

    @property
    def world(self) -> int:
        return self.nodes * self.per_node

    def bytes_per_second(self) -> float:
        """What a ring through all GPUs carries: its slowest link, NVLink or a node's network."""
        links = [self.gpu.nvlink.value * GIGA]
        if self.nodes > 1:
            links.append(self.network_gbps * GIGA / 8)
        return min(links) * GENERAL["link_share"].value

    def flops_per_second(self, precision: str) -> float:
        return self.peak_flops(precision) * self.efficiency(precision)

    def peak_flops(self, precision: str) -> float:
        peak = self.gpu.peak_fp32 if precision == "fp32" else self.gpu.peak
        return peak.value * 1e12

    def efficiency(self, precision: str) -> float:
        """What is measured is measured in half precision."""
        gpu = GPUS[self.kind] if precision == "fp32" else self.gpu
        return gpu.efficiency.value

    def memory_bytes_per_second(self) -> float:
        """What pointwise work sustains."""
        return self.gpu.bandwidth.value * 1e12 * self.gpu.bandwidth_share.value


@dataclass(frozen=True)
class Work:
    """FLOPs of one slot, two per multiply-add, and bytes of scores that are read and written.

    elastic: of the elastic students if they were as large as the intact one; a size costs its
    share of it. float32: what is computed in float32 in every precision.
    """

    teacher: float
    intact: float
    elastic: float
    heads: float
    score_bytes: float
    float32: float = 0.0

    def flops(self, mean_cost: float) -> float:
        own = self.teacher + self.intact + mean_cost * self.elastic
        return own + self.heads + self.float32


def work(recipe: Recipe) -> Work:
    """What one slot of the recipe computes, iBOT included."""
    intact = derived.space(recipe).intact
    number, form = count(recipe), derived.shape(recipe)
    students = Students(recipe, (intact,) * number, most_masked(recipe))
    # forward, and twice as much in the backward pass; activation checkpointing repeats the forward
    passes = 4 if recipe.backbone.activation_checkpointing else 3
    student = sum(
        n * form.flops(intact, side) * students.computed_share(n)
        for n, side in students.streams.crops
    )
    found = Work(
        teacher=2 * recipe.batch.images_per_slot * form.flops(intact, recipe.crops.global_size)
        + form.making(),
        intact=passes * student + 3 * form.making(),
        elastic=(number - 1) * passes * student,
        heads=0.0,
        score_bytes=0.0,
    )
    if byol.compares(recipe):
        return replace(found, heads=byol.flops(students))
    ends = _distilled if distillation.is_frozen(recipe) else _scored
    return ends(found, students)


def _distilled(found: Work, students: Students) -> Work:
    """With a frozen teacher and its queue."""
    learned, targets = distillation.similarities(students)
    moved = learned * GENERAL["similarity_bytes"].value
    moved += targets * GENERAL["target_similarity_bytes"].value
    return replace(
        found,
        teacher=distillation.teacher_flops(students),
        heads=distillation.head_flops(students),
        score_bytes=moved,
        float32=distillation.similarity_flops(students),
    )


def _scored(found: Work, students: Students) -> Work:
    """With prototype heads and their scores."""
    recipe, heads = students.recipe, students.recipe.heads
    intact, form = students.subnets[0], derived.shape(recipe)
    widths = [form.features(intact), *[heads.hidden] * (heads.layers - 1), heads.bottleneck]
    mlps = len(heads.prototypes) * sum(a * b for a, b in pairwise(widths))
    scores, student_rows = sum(heads.prototypes), students.cls_rows + students.patch_rows
    teacher_rows = 2 * recipe.batch.images_per_slot + students.masked
    sinkhorn = recipe.objective.centering == "sinkhorn"
    # scores are made anew in every pass: largest ones, iterations, targets
    times = (recipe.objective.sinkhorn_iterations + 2) if sinkhorn else 2
    products, moved = _student_scores(students)
    linear = (3 * student_rows + teacher_rows) * mlps
    products += times * teacher_rows * scores
    moved += times * teacher_rows * scores * GENERAL["teacher_score_bytes"].value
    flops = 2.0 * (linear + products * heads.bottleneck)
    return replace(found, heads=flops, score_bytes=moved)


def _student_scores(students: Students) -> tuple[float, float]:
    """(scores that are multiplied out, bytes that are moved for them), forward and backward."""
    products = moved = 0.0
    classes, patches = students.cls_rows, students.patch_rows
    targets = 3 if students.imitates else 2  # of a class row: two crops, intact student
    for prototypes in students.recipe.heads.prototypes:
        if by_rows(students, prototypes):
            # each way: the row's own and its targets' scores (of a patch: 1); then 2 gradients
            products += prototypes * (classes * (2 * (1 + targets) + 2) + patches * (2 * 2 + 2))
            moved += prototypes * classes * GENERAL["chunked_class_bytes"].value
            moved += prototypes * patches * GENERAL["chunked_patch_bytes"].value
        else:
            products += prototypes * (classes + patches) * 3
            moved += prototypes * (classes + patches) * GENERAL["score_bytes"].value
    return products, moved


@dataclass(frozen=True)
class Draws:
    """Cost of the elastic size under one policy, 1 = the intact one: the mean over all slots, and
    the mean of the slowest rank in each turn. Ranks meet in the backward pass of every slot."""

    mean: float
    slowest: float


def draws(recipe: Recipe, policy: Policy, world: int) -> Draws:
    """By drawing the first steps of the run; all policies are alike where nothing is drawn."""
    space, slots = derived.space(recipe), recipe.batch.slots
    always = fixed(recipe) or ()
    if others := [space.cost(size) for size in always[1:]]:
        return Draws(statistics.fmean(others), statistics.fmean(others))
    drawn, own = (1, 1) if policy == "same" else (slots, slots // world)
    slowest, every = [], []
    for step in range(min(DRAWN_STEPS, max(1, MOST_DRAWS // drawn))):
        sizes = [
            space.draw(step, slot, seed=recipe.seed, slots=slots, policy=policy)
            for slot in range(drawn)
        ]
        costs = [space.cost(size) for size in sizes]
        every += costs
        slowest += [max(costs[turn::own]) for turn in range(own)]  # of each rank's turn-th slot
    return Draws(statistics.fmean(every), statistics.fmean(slowest))


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by what they are spent on; sent_gib: by each GPU. All estimated."""

    teacher: float
    intact: float
    elastic: float
    heads: float
    scores: float
    waiting: float
    optimizer: float
    communication: float
    sent_gib: float

    @property
    def total(self) -> float:
        """Nothing is assumed to hide behind anything else."""
        compute = self.teacher + self.intact + self.elastic + self.heads + self.scores
        return compute + self.waiting + self.optimizer + self.communication


def step_time(
    recipe: Recipe, network: Network, layout: Layout, cluster: Cluster, drawn: Draws
) -> StepTime:
    """A step of the recipe under one ZeRO stage."""
    slots, one = layout.own_slots, work(recipe)
    rate = cluster.flops_per_second(recipe.precision)
    memory = cluster.memory_bytes_per_second()
    elastic = slots * one.elastic / rate
    mine = network.parameters / (cluster.world if layout.stage else 1)
    sent = traffic(network, layout).sent(cluster.world)
    return StepTime(
        teacher=slots * one.teacher / rate,
        intact=slots * one.intact / rate,
        elastic=elastic * drawn.mean,
        heads=slots * one.heads / rate,
        scores=slots * (one.score_bytes / memory + one.float32 / cluster.flops_per_second("fp32")),
        waiting=elastic * (drawn.slowest - drawn.mean),
        optimizer=mine * GENERAL["optimizer_bytes"].value / memory,
        communication=sent / cluster.bytes_per_second(),
        sent_gib=sent / GIB,
    )


@cache
def published_share() -> float:
    """Share of an A100's peak that the published run reached, everything included."""
    recipe = Recipe(draws="per_slot")
    steps = derived.of(recipe, int(GENERAL["imagenet"].value)).steps
    seconds = GENERAL["published_gpu_hours"].value * 3600 / recipe.batch.slots / steps
    mean = draws(recipe, recipe.draws, recipe.batch.slots).mean
    return work(recipe).flops(mean) / seconds / (GPUS["a100-80g"].peak.value * 1e12)


def like_published(recipe: Recipe, layout: Layout, cluster: Cluster, drawn: Draws) -> float:
    """Seconds of a step at the published run's share of the peak of this GPU."""
    one, share = work(recipe), published_share()
    rate, slow = (share * cluster.peak_flops(p) for p in (recipe.precision, "fp32"))
    own = one.flops(drawn.mean) - one.float32
    return layout.own_slots * (own / rate + one.float32 / slow)
