"""What BYOL's comparison takes in the place of prototypes: projector, predictor, unit rows."""

from itertools import pairwise

from poa_ds.model.saved import FLOAT, Named
from poa_ds.plan.students import Students
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe


def compares(recipe: Recipe) -> bool:
    """Whether the recipe has this comparison."""
    return recipe.objective.method != "seed" and recipe.objective.loss == "byol"


def saved(students: Students) -> Named:
    """Bytes that heads and loss of all students keep of the slot."""
    recipe, b, rows = students.recipe, students.bytes_per_number, students.cls_rows
    options, of_one = recipe.heads, students.views * recipe.heads.bottleneck
    features = sum(derived.shape(recipe).features(subnet) for subnet in students.subnets)
    hidden = options.layers  # layers - 1 of the projector, one of the predictor
    copies = 2 * (len(students.subnets) - 1) if students.imitates else 0
    return {
        "features": students.views * features * b,
        # what norms and ReLUs let out, mean and deviation of the norms
        "head MLPs": hidden * rows * (2 * options.hidden * b + 2 * FLOAT),
        "projections": rows * options.bottleneck * b,
        "predictions and their unit rows": 2 * rows * options.bottleneck * FLOAT,
        "what they are compared with": (len(students.subnets) + copies) * of_one * FLOAT,
    }


def transient(students: Students, own_slots: int) -> Named:
    """Bytes of all `own_slots` slots of a rank at once."""
    recipe = students.recipe
    features = derived.shape(recipe).features(students.subnets[0])
    crops = 2 * recipe.batch.images_per_slot
    return {
        "crops of all slots, float32": own_slots * students.streams.pixels * FLOAT,
        "the teacher's projections and features": own_slots
        * crops
        * (recipe.heads.bottleneck + features)
        * FLOAT,
    }


def flops(students: Students) -> float:
    """Of all heads on one slot, both ways of the students, as they are computed."""
    features = derived.shape(students.recipe).features(students.subnets[0])
    return _flops(students, students.cls_rows * features)


def least_flops(students: Students) -> float:
    """The same where a narrow student's features enter with as many columns as they have."""
    features = sum(derived.shape(students.recipe).features(s) for s in students.subnets)
    return _flops(students, students.views * features)


def _flops(students: Students, entered: float) -> float:
    """entered: numbers of all students' features."""
    recipe = students.recipe
    options, crops = recipe.heads, 2 * recipe.batch.images_per_slot
    features = derived.shape(recipe).features(derived.space(recipe).intact)
    widths = [options.hidden] * (options.layers - 1) + [options.bottleneck]
    later = sum(a * b for a, b in pairwise(widths))
    predictor = 2 * options.hidden * options.bottleneck
    of_students = entered * widths[0] + students.cls_rows * (later + predictor)
    return 2.0 * (3 * of_students + crops * (features * widths[0] + later))
