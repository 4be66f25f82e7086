"""What one slot keeps in memory between forward and backward, counted operator by operator.

Counted as autograd saves it with the plain PyTorch operators; Triton kernels save less. Each
backbone has a function here that lists its blocks; heads and losses are the same for all. Tests
compare the sum with what autograd really holds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from poa_ds.model.shape import map_sides, shape
from poa_ds.model.space import Subnet, spread
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe
from poa_kernels.prototype_ce_chunks import LARGE

FLOAT = 4  # bytes of statistics, scores and losses in every precision
ROW_NUMBER = 8  # int64
CHUNKS = 5  # matrices of the size of a chunk that its losses need at once
SKIPPING = {"vit"}  # backbones whose stochastic depth saves work, not only results
Named = dict[str, float]


@dataclass(frozen=True)
class Slot:
    """One slot of a recipe and its two sizes. masked: masked patches of its global crops."""

    recipe: Recipe
    intact: Subnet
    elastic: Subnet
    masked: int

    @property
    def width(self) -> int:
        """Bytes of one number of the networks."""
        return FLOAT if self.recipe.precision == "fp32" else 2

    @property
    def subnets(self) -> tuple[Subnet, Subnet]:
        return self.intact, self.elastic

    @property
    def crops(self) -> list[tuple[int, int]]:
        """(crops, pixels of a side) of the global and of the local crops."""
        crops, images = self.recipe.crops, self.recipe.batch.images_per_slot
        both = [(2 * images, crops.global_size), (crops.local_count * images, crops.local_size)]
        return [group for group in both if group[0]]

    @property
    def pixels(self) -> int:
        return sum(3 * n * side**2 for n, side in self.crops)

    @property
    def views(self) -> int:
        """Class tokens of one student: one per crop."""
        return sum(n for n, _ in self.crops)


def most_masked(recipe: Recipe) -> int:
    """The most masked patches that a slot can have; 0 without iBOT."""
    if not recipe.objective.ibot:
        return 0
    patches = shape(recipe).grid(recipe.crops.global_size) ** 2
    count = int(2 * recipe.batch.images_per_slot * recipe.masks.probability)
    low, high = recipe.masks.ratio
    return sum(int(patches * (low + (high - low) * (i + 1) / count)) for i in range(count))


@dataclass(frozen=True)
class Block:
    """entry: bytes of the streams that enter; inside: what the block saves, by name."""

    entry: float
    inside: Named


@dataclass(frozen=True)
class Counted:
    """Bytes of a backbone: outside of its blocks, and each block."""

    outside: Named
    blocks: list[Block] = field(default_factory=list)

    def all_kept(self) -> Named:
        """Everything stays until the backward pass."""
        return _sum(self.outside, *(block.inside for block in self.blocks))

    def recomputed(self) -> Named:
        """Activation checkpointing: the blocks' inputs, and one block that is computed again."""
        largest = max((sum(block.inside.values()) for block in self.blocks), default=0.0)
        entries = sum(block.entry for block in self.blocks)
        return _sum(self.outside, {"inputs of the blocks": entries, "one block again": largest})


def _sum(*parts: Named) -> Named:
    total: Named = {}
    for part in parts:
        for name, count in part.items():
            total[name] = total.get(name, 0.0) + count
    return total


def backbone(slot: Slot) -> Counted:
    """What both students' backbones keep of the slot."""
    return BACKBONES[slot.recipe.backbone.name](slot)


def _kept(count: int, rate: float) -> float:
    """Sequences of `count` that a branch of a ViT runs on (layers.keep_sequences)."""
    if rate > 0.1:
        return max(int(count * (1 - rate)), 1)
    return count * (1 - rate)


def kept_share(slot: Slot, count: int) -> float:
    """Share of `count` sequences that a branch computes; only ViTs leave the others out."""
    left_out = slot.recipe.backbone.name in SKIPPING
    return _kept(count, slot.recipe.backbone.drop_path) / count if left_out else 1.0


def _vit(slot: Slot) -> Counted:
    options, b = slot.recipe.backbone, slot.width
    lengths = [(n, 1 + (side // options.patch_size) ** 2) for n, side in slot.crops]
    rows = sum(n * tokens for n, tokens in lengths)
    some = sum(_kept(n, options.drop_path) * tokens for n, tokens in lengths)
    drops, members = (
        options.drop_path > 0,
        [set(spread(subnet.depth, options.depth.max)) for subnet in slot.subnets],
    )
    outside: Named = {"crops": slot.pixels * b}
    blocks = []
    for index in range(options.depth.max):
        entry, inside = 0.0, []
        for number, subnet in enumerate(slot.subnets):
            c, shared = subnet.width, bool(number) and index == 0
            entry += 0 if shared else rows * c * b
            if index in members[number]:
                inside.append(_vit_stream(slot, c, some))
                if shared and not drops:  # a prefix of the intact stream: no memory of its own
                    inside.append({"inputs of the norms": -rows * c * b})
        blocks.append(Block(entry, _sum(*inside)))
    branches = 2 * sum(map(len, members)) if drops else 0
    outside["rows that stochastic depth keeps"] = branches * (
        some * (ROW_NUMBER + FLOAT) + rows * FLOAT
    )
    for subnet in slot.subnets:
        outside = _sum(outside, {"final norm": rows * (subnet.width * b + 2 * FLOAT)})
    return Counted(outside, blocks)


def _vit_stream(slot: Slot, c: int, rows: float) -> Named:
    """One block of a ViT for one stream of width c on `rows` rows."""
    options, b = slot.recipe.backbone, slot.width
    hidden = options.mlp_ratio * c
    return {
        "inputs of the norms": rows * (2 * c * b + 4 * FLOAT),
        "inputs of qkv and fc1": rows * 2 * c * b,
        "attention: q, k, v, result twice": rows * (5 * c * b + c // options.head_dim * FLOAT),
        "MLP: before and after GELU": rows * 2 * hidden * b,
        "results of both branches": rows * 2 * c * b,
    }


def _swin(slot: Slot) -> Counted:
    options, b, form = slot.recipe.backbone, slot.width, shape(slot.recipe)
    sides = [(n, map_sides(side, options.patch_size)) for n, side in slot.crops]
    rows = [sum(n * side[stage] ** 2 for n, side in sides) for stage in range(4)]
    members = [set(form.members(subnet)) for subnet in slot.subnets]
    outside: Named = {
        "crops": slot.pixels * b,
        "norm of the patches": rows[0] * (form.widest * b + 2 * FLOAT),
    }
    blocks, index = [], 0
    for stage, depth in enumerate(form.stages):
        windows = [(n, -(-side[stage] // options.window)) for n, side in sides]
        for place in range(depth):
            merges, entry, inside = stage > 0 and place == 0, 0.0, []
            for number, subnet in enumerate(slot.subnets):
                c = subnet.width * 2**stage
                shared = bool(number) and index == 0
                before = rows[stage - 1] * c // 2 if merges else rows[stage] * c
                entry += 0 if shared else before * b
                if merges:
                    inside.append({"merging": rows[stage] * (4 * c * b + 2 * FLOAT)})
                if index in members[number]:
                    inside.append(_swin_stream(slot, c, rows[stage], windows))
                    if shared:
                        inside.append({"inputs of the norms": -rows[stage] * c * b})
            blocks.append(Block(entry, _sum(*inside)))
            index += 1
    for subnet in slot.subnets:
        outside = _sum(outside, {"final norm": rows[3] * (8 * subnet.width * b + 2 * FLOAT)})
    return Counted(outside, blocks)


def _swin_stream(slot: Slot, c: int, rows: int, windows: list[tuple[int, int]]) -> Named:
    """One block of a Swin for one stream; windows: (maps, windows along a side) per crop group.

    Attention as PyTorch computes it on a CPU with a trained bias: the probabilities are kept.
    """
    options, b = slot.recipe.backbone, slot.width
    places = [n * (side * options.window) ** 2 for n, side in windows]
    # scaled q and k, v; with several windows v lies in a copy of all three
    copies = sum(
        count * (5 if side > 1 else 3) for count, (_, side) in zip(places, windows, strict=True)
    )
    pairs = sum(places) * options.window**2
    hidden = options.mlp_ratio * c
    dropped = 2 * FLOAT if options.drop_path > 0 else 0
    return {
        "inputs of the norms": rows * (2 * c * b + 4 * FLOAT),
        "inputs of qkv and fc1": rows * 2 * c * b,
        "attention: q, k, v": copies * c * b,
        "attention: probabilities": pairs * (c // options.head_dim) * b,
        "attention: windows put back": rows * c * b,
        "MLP: before and after GELU": rows * 2 * hidden * b,
        "factors of stochastic depth": rows * dropped,
    }


def _resnet(slot: Slot) -> Counted:
    options, b, form = slot.recipe.backbone, slot.width, shape(slot.recipe)
    sides = [(n, map_sides(side, options.patch_size)) for n, side in slot.crops]
    areas = [sum(n * side[stage] ** 2 for n, side in sides) for stage in range(4)]
    members = [set(form.members(subnet)) for subnet in slot.subnets]
    halves = sum(n * (-(-side // 2)) ** 2 for n, side in slot.crops)
    outside: Named = {
        "crops": slot.pixels * b,
        "stem: convolution and ReLU": halves * 2 * form.stem * b,
        "stem: pooling": areas[0] * form.stem * (ROW_NUMBER + b),
    }
    blocks, index, inputs = [], 0, form.stem
    for stage, depth in enumerate(form.stages):
        for place in range(depth):
            outer, before = 2 * form.widest * 2**stage, areas[max(stage - (place == 0), 0)]
            maps, entry, inside = (before, areas[stage], outer), 0.0, []
            for number, subnet in enumerate(slot.subnets):
                entry += 0 if number and not index else before * inputs * b
                if index in members[number]:
                    inner = subnet.width * 2**stage
                    inside.append(_resnet_stream(slot, inner, maps, shortcut=place == 0))
                    if index and index - 1 not in members[number]:  # a copy that passed it by
                        inside.append({"inputs of the blocks": before * inputs * b})
            blocks.append(Block(entry, _sum(*inside)))
            index, inputs = index + 1, outer
    return Counted(outside, blocks)


def _resnet_stream(slot: Slot, inner: int, maps: tuple[int, int, int], *, shortcut: bool) -> Named:
    """One bottleneck for one stream. maps: places before and after, channels that leave."""
    (before, after, outer), b = maps, slot.width
    narrow = inner < outer // 2
    weights = (9 * inner**2 + inner * outer) * b * len(slot.crops) if narrow else 0
    return {
        "inputs of the norms": ((before + after) * inner + (1 + shortcut) * after * outer) * b,
        "results of ReLU": ((before + after) * inner + after * outer) * b,
        "scaled weights": weights,
    }


def heads_and_losses(slot: Slot) -> Named:
    """What the heads and losses of both students keep of the slot, over all heads."""
    heads, b, images = slot.recipe.heads, slot.width, slot.recipe.batch.images_per_slot
    form, count = shape(slot.recipe), len(slot.recipe.heads.prototypes)
    features = sum(form.features(subnet) for subnet in slot.subnets)
    per_student = slot.views + slot.masked
    rows, scores = 2 * per_student, sum(heads.prototypes)
    banks = 2 if heads.separate_ibot and slot.masked else 1
    return {
        "features": per_student * features * b,
        "head MLPs": count * rows * (heads.layers - 1) * 2 * heads.hidden * b,
        "bottlenecks": count * rows * 2 * heads.bottleneck * b,
        "prototypes": banks * scores * heads.bottleneck * b,
        "probabilities and targets": sum(_probabilities(slot, k) for k in heads.prototypes),
        "KoLeo": 3 * 2 * images * features * FLOAT,
    }


def is_chunked(rows: int, prototypes: int) -> bool:
    """Whether the scores of a head are made part by part, and again in the backward pass."""
    return rows * prototypes > LARGE


def by_rows(slot: Slot, prototypes: int) -> bool:
    """Whether a head's losses take all targets of a row in one pass (branches.poa_terms)."""
    kinds = (2 * slot.views, 2 * slot.masked)
    return any(is_chunked(rows, prototypes) for rows in kinds)


def _probabilities(slot: Slot, prototypes: int) -> int:
    """Bytes of the probabilities that the losses of one head keep."""
    images = slot.recipe.batch.images_per_slot
    if by_rows(slot, prototypes):
        # the rows' own, and of each target: teacher and intact student, or teacher
        kinds = ((2 * slot.views, 3), (2 * slot.masked, 2))
        rows = sum(n * times for n, times in kinds if not is_chunked(n, prototypes))
    else:
        # the students' own, targets of both crops, their sums, imitation of all views
        rows = 2 * (slot.views + slot.masked) + slot.masked
        rows += 2 * (2 * images + images) + 2 * slot.views
    return rows * prototypes * FLOAT


def beside(slot: Slot, slots: int) -> Named:
    """What lies in memory beside the saved tensors: of `slots` slots, and while losses are made."""
    heads, b, images = slot.recipe.heads, slot.width, slot.recipe.batch.images_per_slot
    rows, scores = 2 * images + slot.masked, sum(heads.prototypes)
    targets = rows * heads.bottleneck * len(heads.prototypes) * b
    student_rows = 2 * (slot.views + slot.masked)
    whole = [student_rows * k for k in heads.prototypes if not by_rows(slot, k)]
    parts = [CHUNKS * LARGE for k in heads.prototypes if by_rows(slot, k)]
    return {
        "crops of all slots, float32": slots * slot.pixels * FLOAT,
        "teacher: bottlenecks and prototypes": slots * (targets + scores * heads.bottleneck * b),
        "scores of a head at work": max([*whole, *parts]) * FLOAT,
    }


BACKBONES: dict[str, Callable[[Slot], Counted]] = {"vit": _vit, "swin": _swin, "resnet": _resnet}


def largest(recipe: Recipe) -> Iterator[tuple[float, Slot]]:
    """(bytes of the backbones, slot) of every elastic size that is drawn."""
    masked, space = most_masked(recipe), derived.space(recipe)
    for subnet in dict.fromkeys(space.menu()):
        slot = Slot(recipe, space.intact, subnet, masked)
        yield sum(backbone(slot).all_kept().values()), slot
