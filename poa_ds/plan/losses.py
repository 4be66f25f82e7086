"""What heads and losses of one slot take in memory, kept for the backward pass and in passing."""

from poa_ds.model.saved import FLOAT, Named
from poa_ds.plan import byol, distillation
from poa_ds.plan.students import Students
from poa_ds.recipe import derived
from poa_kernels.prototype_ce_chunks import CHUNK_ON_GPU, LARGE

CHUNKS = 5  # matrices of the size of a chunk that its losses need at once


def saved(students: Students) -> Named:
    """Bytes that heads and losses of all students keep of the slot, over all heads."""
    recipe, b = students.recipe, students.bytes_per_number
    if distillation.is_frozen(recipe):
        return distillation.saved(students)
    if byol.compares(recipe):
        return byol.saved(students)
    heads, count = recipe.heads, len(recipe.heads.prototypes)
    features = sum(derived.shape(recipe).features(subnet) for subnet in students.subnets)
    rows = students.cls_rows + students.patch_rows
    kinds = 2 if heads.separate_ibot and students.masked else 1
    banks = kinds * len(students.subnets) // students.sharing
    return {
        "features": (students.views + students.masked) * features * b,
        "head MLPs": count * rows * (heads.layers - 1) * 2 * heads.hidden * b,
        "bottlenecks": count * rows * 2 * heads.bottleneck * b,
        "prototypes": banks * sum(heads.prototypes) * heads.bottleneck * b,
        "probabilities and targets": sum(_probabilities(students, k) for k in heads.prototypes),
        "KoLeo": 3 * 2 * recipe.batch.images_per_slot * features * FLOAT,
    }


def is_chunked(rows: int, prototypes: int) -> bool:
    """Whether the scores of a head are made part by part, and again in the backward pass."""
    return rows * prototypes > LARGE


def by_rows(students: Students, prototypes: int) -> bool:
    """Whether a head's losses take all targets of a row in one pass, as the training decides it."""
    kinds = (students.views, students.masked)
    return any(is_chunked(students.sharing * rows, prototypes) for rows in kinds)


def _probabilities(students: Students, prototypes: int) -> int:
    """Bytes of the probabilities that the losses of one head keep."""
    count, images = len(students.subnets), students.recipe.batch.images_per_slot
    classes, patches, sharing = students.cls_rows, students.patch_rows, students.sharing
    if by_rows(students, prototypes):
        # the rows' own, and of each target: teacher and (where it teaches others) intact student
        taught = (classes if sharing == count else classes - students.views) * students.imitates
        kinds = ((2 * classes + taught, students.views), (2 * patches, students.masked))
        rows = sum(n for n, of_one in kinds if not is_chunked(sharing * of_one, prototypes))
    else:
        # the students' own, patch targets; targets of both crops and their sums for each student;
        # imitation of all views
        rows = classes + patches + students.masked * count // sharing
        rows += count * (2 * images + images)
        rows += 2 * (count - 1) * students.views if students.imitates else 0
    return rows * prototypes * FLOAT


def transient(students: Students, own_slots: int) -> Named:
    """Bytes of all `own_slots` slots of a rank at once, and while losses are made."""
    recipe, b = students.recipe, students.bytes_per_number
    if distillation.is_frozen(recipe):
        return distillation.transient(students, own_slots)
    if byol.compares(recipe):
        return byol.transient(students, own_slots)
    heads, scores = recipe.heads, sum(recipe.heads.prototypes)
    rows = 2 * recipe.batch.images_per_slot + students.masked
    targets = rows * heads.bottleneck * len(heads.prototypes) * b
    student_rows = students.sharing * (students.views + students.masked)
    whole = [student_rows * k for k in heads.prototypes if not by_rows(students, k)]
    rows_of_kind = students.sharing * max(students.views, students.masked)
    chunks = [min(CHUNK_ON_GPU, rows_of_kind * k) for k in heads.prototypes if by_rows(students, k)]
    teacher = own_slots * (targets + scores * heads.bottleneck * b)
    return {
        "crops of all slots, float32": own_slots * students.streams.pixels * FLOAT,
        "teacher: bottlenecks and prototypes": teacher,
        "scores of a head at work": max([*whole, *(CHUNKS * scores for scores in chunks)]) * FLOAT,
    }
