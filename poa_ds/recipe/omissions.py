"""What a recipe names and its run never does: allowed, and said when the run starts."""

from collections.abc import Iterator

from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe


def omissions(recipe: Recipe, images: int) -> list[str]:
    """One sentence each about a run on a training set of `images` images."""
    return [*_schedules(recipe, images), *_intervals(recipe, images), *_unused(recipe)]


def _schedules(recipe: Recipe, images: int) -> Iterator[str]:
    """What begins or ends at a step that the run does not have."""
    numbers, schedule = derived.of(recipe, images), recipe.schedule
    run = f"and the run has {numbers.steps:,} (schedule.epochs {schedule.epochs:g})"
    if recipe.objective.ibot and numbers.ibot_start_step >= numbers.steps:
        yield (
            f"iBOT never starts: schedule.ibot_start_epoch {schedule.ibot_start_epoch:g} is after"
            f" {numbers.ibot_start_step:,} steps, {run}"
        )
    if numbers.warmup_steps >= numbers.steps:
        yield (
            "the learning rate never falls, it rises to the end: schedule.warmup_epochs"
            f" {schedule.warmup_epochs:g} is {numbers.warmup_steps:,} steps, {run}"
        )
    if numbers.freeze_steps >= numbers.steps:
        yield (
            "the prototypes are never trained: schedule.freeze_last_layer_epochs"
            f" {schedule.freeze_last_layer_epochs:g} is {numbers.freeze_steps:,} steps, {run}"
        )
    rises = schedule.teacher_temperature_start != schedule.teacher_temperature
    if rises and numbers.temperature_steps > numbers.steps:
        yield (
            f"the teacher's temperature never reaches {schedule.teacher_temperature:g}:"
            f" schedule.teacher_temperature_epochs {schedule.teacher_temperature_epochs:g} is"
            f" {numbers.temperature_steps:,} steps, {run}"
        )


def _intervals(recipe: Recipe, images: int) -> Iterator[str]:
    """What comes every so many steps, and the run is over before."""
    numbers, checkpoint = derived.of(recipe, images), recipe.checkpoint
    run = f"and the run has {numbers.steps:,}"
    if recipe.evaluation.queries and numbers.evaluation_steps > numbers.steps:
        yield (
            "no evaluation before the end: evaluation.every_epochs"
            f" {recipe.evaluation.every_epochs:g} is {numbers.evaluation_steps:,} steps, {run}"
        )
    if numbers.checkpoint_steps > numbers.steps:
        yield (
            f"no checkpoint before the end: checkpoint.every_epochs {checkpoint.every_epochs:g} is"
            f" {numbers.checkpoint_steps:,} steps, {run}"
        )
    if numbers.keep_steps > numbers.steps:
        yield (
            "no checkpoint is kept for good: checkpoint.keep_every_epochs"
            f" {checkpoint.keep_every_epochs:g} is {numbers.keep_steps:,} steps, {run}"
        )


def _unused(recipe: Recipe) -> Iterator[str]:
    """Keys that another key takes the effect from."""
    if recipe.objective.ibot and not (recipe.masks.probability and recipe.masks.ratio[1]):
        yield (
            f"iBOT learns nothing, no patch is masked: masks.probability"
            f" {recipe.masks.probability:g}, masks.ratio {[*recipe.masks.ratio]}"
        )
    if recipe.tracking == "none" and recipe.mlflow.uri:
        yield f"MLflow gets nothing: tracking none, although mlflow.uri is {recipe.mlflow.uri}"
