"""What a training costs in one line: counted operations, and hours on one GPU."""

from poa_ds.plan import step_time
from poa_ds.plan.constants import GPUS
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe

PLANNED = "a100-80g"  # the GPU of the estimate
PASSES = 4  # of a network for one that learns and one that teaches: 3 and 1


def cost(recipe: Recipe, steps: int) -> str:
    """Of a training; under method seed its largest size is the teacher, which need not be there."""
    of_slot = _seed if recipe.objective.method == "seed" else _of_slot
    total = steps * recipe.batch.slots * of_slot(recipe)
    rate = GPUS[PLANNED].peak.value * GPUS[PLANNED].efficiency.value
    hours = total / (rate * 1e12) / 3600
    return (
        f"{total:.3g} FLOPs counted, {hours:.2g} hours on one {PLANNED} (estimated; `poa-ds plan`"
        " says more)"
    )


def _of_slot(recipe: Recipe) -> float:
    return step_time.work(recipe).flops(step_time.draws(recipe, recipe.draws, 1).mean)


def _seed(recipe: Recipe) -> float:
    """Two crops of each image."""
    shape, space = derived.shape(recipe), derived.space(recipe)
    side, sizes = recipe.crops.global_size, space.subnets()
    drawn = sum(shape.flops(subnet, side) for subnet in sizes) / len(sizes)
    a_crop = PASSES * shape.flops(space.intact, side) + (PASSES - 1) * drawn
    return 2 * recipe.batch.images_per_slot * a_crop
