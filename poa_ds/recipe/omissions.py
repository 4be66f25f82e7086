"""What a recipe names and its run never does: allowed, and said when the run starts."""

from collections.abc import Iterator

from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe


def omissions(recipe: Recipe, images: int) -> list[str]:
    """One sentence each about a run on a training set of `images` images."""
    in_steps = [*_schedules(recipe, images), *_intervals(recipe, images)]
    return [*in_steps, *_unused(recipe), *_idle(recipe)]


def _schedules(recipe: Recipe, images: int) -> Iterator[str]:
    """What begins or ends at a step that the run does not have."""
    numbers, schedule = derived.of(recipe, images), recipe.schedule
    run = f"and the run has {numbers.steps:,} (schedule.epochs {schedule.epochs:g})"
    patches = recipe.objective.ibot and not recipe.finetune.classes
    if patches and numbers.ibot_start_step >= numbers.steps:
        yield (
            f"iBOT never starts: schedule.ibot_start_epoch {schedule.ibot_start_epoch:g} is after"
            f" {numbers.ibot_start_step:,} steps, {run}"
        )
    if numbers.warmup_steps >= numbers.steps:
        yield (
            "the learning rate never falls, it rises to the end: schedule.warmup_epochs"
            f" {schedule.warmup_epochs:g} is {numbers.warmup_steps:,} steps, {run}"
        )
    if not derived.scores_prototypes(recipe):
        return
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
    if recipe.log_every > numbers.steps:
        yield f"no metrics before the end: log_every {recipe.log_every:,} steps, {run}"
    online = recipe.evaluation.online
    if online.labels and online.every_steps > numbers.steps:
        yield (
            "the online probe learns nothing: evaluation.online.every_steps"
            f" {online.every_steps:,}, {run}"
        )
    elif online.labels and recipe.log_every % online.every_steps:
        yield (
            f"most rows have no online/top1: log_every {recipe.log_every:,} is not a multiple of"
            f" evaluation.online.every_steps {online.every_steps:,}"
        )
    if numbers.keep_steps > numbers.steps:
        yield (
            "no checkpoint is kept for good: checkpoint.keep_every_epochs"
            f" {checkpoint.keep_every_epochs:g} is {numbers.keep_steps:,} steps, {run}"
        )


def _unused(recipe: Recipe) -> Iterator[str]:
    """Keys that another key takes the effect from."""
    patches = recipe.objective.ibot and not recipe.finetune.classes
    if patches and not (recipe.masks.probability and recipe.masks.ratio[1]):
        yield (
            f"iBOT learns nothing, no patch is masked: masks.probability"
            f" {recipe.masks.probability:g}, masks.ratio {[*recipe.masks.ratio]}"
        )
    evaluation = recipe.evaluation
    if evaluation.bank and not evaluation.queries:
        yield f"no evaluation: evaluation.queries is empty, although bank is {evaluation.bank}"
    if "mlflow" not in recipe.trackers and recipe.mlflow.uri:
        told = f"although mlflow.uri is {recipe.mlflow.uri}"
        yield f"MLflow gets nothing: tracking {recipe.tracking}, {told}"


def _idle(recipe: Recipe) -> Iterator[str]:
    """Networks that a weight of the recipe leaves without any gradient, or as they are."""
    objective = recipe.objective
    if not (objective.dino or objective.ibot or objective.koleo):
        yield "nothing is learned: objective.dino, objective.ibot and objective.koleo are 0"
    if objective.method == "poa" and objective.intact_weight == 0:
        yield "the largest size learns nothing of its own: objective.intact_weight is 0"
    if objective.method == "poa" and objective.intact_weight == 1:
        yield "smaller sizes learn nothing of their own: objective.intact_weight is 1"
    if recipe.schedule.momentum == 1:
        yield "the teacher never moves: schedule.momentum is 1"
