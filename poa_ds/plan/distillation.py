"""What SEED takes beside its students: head, queue, similarities, the frozen teacher."""

from functools import cache

from poa_ds.methods import frozen
from poa_ds.methods.frozen import Cost, Frozen
from poa_ds.methods.seed import TYPES
from poa_ds.model.saved import FLOAT, Named
from poa_ds.plan.students import Students
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe

AT_ONCE = 3  # matrices of similarities: before and after the temperature, their softmax
FORWARD_AND_BACKWARD = 3  # products with the queue: similarities, made again, gradient
TARGETS = 2  # products with the queue: similarities, mean neighbour


def is_frozen(recipe: Recipe) -> bool:
    """Whether the teacher comes from a file, and nothing is averaged."""
    return recipe.objective.method == "seed"


def teacher(recipe: Recipe) -> Frozen:
    """UserError: there is none where the recipe says."""
    return frozen.of_recipe(recipe)


def cost(recipe: Recipe) -> Cost:
    """Of the whole teacher, which every rank holds."""
    return _cost(teacher(recipe), recipe.crops.global_size)


@cache
def _cost(network: Frozen, side: int) -> Cost:
    return network.cost(side)


def teacher_flops(students: Students) -> float:
    """Of the teacher's pass of one slot."""
    network = teacher(students.recipe)
    return sum(n * _cost(network, side).flops for n, side in students.streams.crops)


def described(recipe: Recipe) -> str:
    """The teacher in words."""
    return teacher(recipe).described(recipe.crops.global_size, TYPES[recipe.precision])


def queue(recipe: Recipe) -> int:
    """Numbers of the queue, or of both, float32 in memory and checkpoints."""
    return (1 + recipe.distill.local) * recipe.distill.queue * teacher(recipe).width


def saved(students: Students) -> Named:
    """Bytes that head and loss of all students keep of the slot; the queue is not among them."""
    recipe = students.recipe
    features = sum(derived.shape(recipe).features(subnet) for subnet in students.subnets)
    out, rows = teacher(recipe).width, students.cls_rows
    means = 2 if _imitates(students) else 1  # of the teacher and of the intact student
    return {
        "features": students.views * features * students.bytes_per_number,
        "head": rows * recipe.distill.hidden * students.bytes_per_number,
        "outputs and their unit rows": 2 * rows * out * FLOAT,
        "the teacher's unit rows, means": (1 + means) * students.views * out * FLOAT,
    } | _patches(students)


def _patches(students: Students) -> Named:
    """Bytes of what is kept of patches and their similarities to each other."""
    recipe = students.recipe
    if not recipe.distill.patches:
        return {}
    crops, patches = 2 * recipe.batch.images_per_slot, _count(recipe)
    b = students.bytes_per_number
    features = sum(derived.shape(recipe).features(subnet) for subnet in students.subnets)
    wide = (0 if b == FLOAT else FLOAT) + FLOAT  # in float32, and of length one
    return {
        "tokens of global crops": crops * (1 + patches) * features * b,
        "patches, unit rows": crops * patches * features * wide,
        "similarities of patches": _alike(recipe) * (1 + len(students.subnets)),
    }


def _count(recipe: Recipe) -> int:
    """Patches of a global crop."""
    return derived.shape(recipe).grid(recipe.crops.global_size) ** 2


def _alike(recipe: Recipe) -> float:
    """Bytes of the similarities that one network finds in a slot's global crops."""
    return 2 * recipe.batch.images_per_slot * _count(recipe) ** 2 * FLOAT


def transient(students: Students, own_slots: int) -> Named:
    """Bytes of all `own_slots` slots of a rank at once, and while losses are made."""
    recipe, views = students.recipe, students.views
    largest = max(count for count, _ in students.streams.crops)
    others = (own_slots - 1) * 2 * views * teacher(recipe).width
    alike = (own_slots - 1) * _alike(recipe) if recipe.distill.patches else 0
    return {
        "crops of all slots, float32": own_slots * students.streams.pixels * FLOAT,
        "the teacher's rows of the other slots": others * FLOAT + alike,
        "queue, before and after the step": 2 * queue(recipe) * FLOAT,
        "similarities at work": AT_ONCE * largest * (1 + recipe.distill.queue) * FLOAT,
    }


def head_flops(students: Students) -> float:
    """Of the students' heads on one slot, both ways."""
    features = derived.shape(students.recipe).features(students.subnets[0])
    return 2.0 * 3 * students.cls_rows * _head(students.recipe, features, 1)


def _head(recipe: Recipe, entered: int, students: int) -> int:
    """Products for a row of each student's head; so many channels enter them all together."""
    hidden, out = recipe.distill.hidden, teacher(recipe).width
    return hidden * (entered + students * out) if hidden else entered * out


def similarities(students: Students) -> tuple[float, float]:
    """(similarities of students, of targets) that one slot makes from products with the queue."""
    of_one = students.views * students.recipe.distill.queue
    imitation = 1 if _imitates(students) else 0
    return (len(students.subnets) + imitation) * of_one, (1 + imitation) * of_one


def similarity_flops(students: Students) -> float:
    """Of a slot's products with the queue, which are float32 in every precision."""
    learned, targets = similarities(students)
    products = FORWARD_AND_BACKWARD * learned + TARGETS * targets
    return 2.0 * products * teacher(students.recipe).width + _patch_flops(students)


def _patch_flops(students: Students) -> float:
    """Of the similarities of patches to each other, of teacher and students."""
    recipe = students.recipe
    if not recipe.distill.patches:
        return 0.0
    form, kept = derived.shape(recipe), _alike(recipe) / FLOAT
    features = sum(form.features(subnet) for subnet in students.subnets)
    return 2.0 * kept * (FORWARD_AND_BACKWARD * features + teacher(recipe).width)


def least_flops(students: Students) -> float:
    """Of heads and products with the queue where no similarity is made twice."""
    recipe, form = students.recipe, derived.shape(students.recipe)
    out = teacher(recipe).width
    entered = sum(form.features(subnet) for subnet in students.subnets)
    heads = 3 * students.views * _head(recipe, entered, len(students.subnets))
    learned, targets = similarities(students)
    products = (2 * learned + TARGETS * targets) * out
    return 2.0 * (heads + products) + _patch_flops(students)


def _imitates(students: Students) -> bool:
    return len(students.subnets) > 1 and students.recipe.distill.imitation > 0
