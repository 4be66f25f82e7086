"""What a step cannot do without, however it is computed: products and the bytes of its update.

A measured time is held against it. Pointwise work, scores that are made anew and communication
are left out: some way to compute the step hides or avoids them.
"""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise

from poa_ds.model.space import Subnet
from poa_ds.plan import byol, distillation, state
from poa_ds.plan.students import Students
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe

# fp32 bytes, read and written: of each parameter weight and two moments, of each moving average
STATE, AVERAGE = 3 * 2 * 4, 2 * 4


@dataclass(frozen=True)
class Floor:
    """Of one step on one GPU.

    flops: of products, two per multiply-add (the gradient of the images is among them, which
    nobody needs: 0.1 % at ViT-L). bytes: of the update.
    """

    flops: float
    bytes: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """At rates that the machine reaches; the update waits for the norms of all gradients."""
        return self.flops / flops_per_second + self.bytes / bytes_per_second


def products(recipe: Recipe, sizes: tuple[tuple[Subnet, ...], ...]) -> float:
    """FLOPs of one step whose slots have these students; nothing is recomputed."""
    once = dataclasses.replace(recipe.backbone, activation_checkpointing=False)
    recipe = dataclasses.replace(recipe, backbone=once)
    masked = least_masked(recipe)
    return sum(_slot(Students(recipe, subnets, masked)) for subnets in sizes)


def update_bytes(recipe: Recipe) -> float:
    """Of one step's AdamW and moving average, where one GPU holds all parameters."""
    # the gradient is read; in half precision what student and teacher compute with is written
    gradient, written = (4, 0) if recipe.precision == "fp32" else (2, 2)
    network = state.network(recipe)
    students = network.parameters * (STATE + gradient + written)
    return students + network.averaged * (AVERAGE + written)


def least_masked(recipe: Recipe) -> int:
    """The fewest masked patches that a slot can have; 0 without iBOT."""
    if not recipe.objective.ibot or distillation.is_frozen(recipe):
        return 0
    patches = derived.shape(recipe).grid(recipe.crops.global_size) ** 2
    count = int(2 * recipe.batch.images_per_slot * recipe.masks.probability)
    low, high = recipe.masks.ratio
    return sum(int(patches * (low + (high - low) * i / count)) for i in range(count))


def _slot(students: Students) -> float:
    """FLOPs: the teacher once, every student forward and twice as much backward."""
    recipe, form = students.recipe, derived.shape(students.recipe)
    intact, heads = derived.space(recipe).intact, recipe.heads
    images = 2 * recipe.batch.images_per_slot
    distilled = distillation.is_frozen(recipe)
    backbones = images * form.flops(intact, recipe.crops.global_size)
    if distilled:
        backbones = distillation.teacher_flops(students)
    for subnet in students.subnets:
        backbones += 3 * sum(
            count * form.flops(subnet, side) * students.computed_share(count)
            for count, side in students.streams.crops
        )
    if distilled:
        return backbones + distillation.least_flops(students)
    if byol.compares(recipe):
        return backbones + byol.least_flops(students)
    rows = 3 * (students.cls_rows + students.patch_rows) + images + students.masked
    # a narrow student's features enter the first layer with as many columns as they have
    narrow = [form.features(subnet) for subnet in students.subnets]
    entered = 3 * sum(narrow) * (students.views + students.masked)
    entered += form.features(intact) * (images + students.masked)
    widths = [heads.hidden] * (heads.layers - 1) + [heads.bottleneck]
    later = rows * sum(a * b for a, b in pairwise(widths))
    mlps = len(heads.prototypes) * (entered * widths[0] + later)
    return backbones + 2.0 * (mlps + rows * sum(heads.prototypes) * heads.bottleneck)
