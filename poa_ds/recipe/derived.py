"""Numbers that follow from a recipe and its data set: computed here, written nowhere."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import sqrt

from poa_ds.model import shape as shapes
from poa_ds.model.shape import Shape
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.recipe.schedules import Schedules
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError
from poa_ds.system.printable import figure

# the batch size at which `base_lr` is meant; source: published code (sqrt_wrt_1024)
REFERENCE_IMAGES = 1024


@dataclass(frozen=True)
class Derived:
    """The derived numbers of a run; *_steps and *_step count optimizer steps."""

    images: int
    images_per_step: int
    steps_per_epoch: int
    steps: int
    lr: float
    warmup_steps: int
    ibot_start_step: int
    freeze_steps: int
    temperature_steps: int
    evaluation_steps: int  # between two evaluations; 0 = only at the start and at the end
    checkpoint_steps: int
    keep_steps: int  # between two checkpoints that stay for good; 0 = none
    evaluation_share: float  # estimated forward work of all evaluations / work of the training

    def evaluations_between(self, step: int, last: int) -> int:
        """How many evaluations follow `step` through `last`, which always ends with one."""
        return _times_between(self.evaluation_steps, step, last)

    def checkpoints_between(self, step: int, last: int) -> int:
        """How many checkpoints follow `step` through `last`, which always ends with one."""
        return _times_between(self.checkpoint_steps, step, last)


def _times_between(every: int, step: int, last: int) -> int:
    return 1 + ((last - 1) // every - step // every if every else 0)


def space(recipe: Recipe) -> ElasticSpace:
    """The sizes of the recipe's backbone. UsageError: a name stands for no size of it."""
    bare, options = bare_space(recipe), recipe.backbone
    names = {name: bare.parse(size) for name, size in options.names.items()}
    costs = shape(recipe).costs(bare, recipe.crops.global_size)
    return replace(bare, names=names, costs=costs)


def bare_space(recipe: Recipe) -> ElasticSpace:
    """The sizes without their names and costs."""
    options = recipe.backbone
    depths, width_bias = shapes.kind(options).axes(options)
    widths = shapes.widths(options)
    return ElasticSpace(widths, depths, options.small_bias, width_bias=width_bias)


def check_trained(recipe: Recipe, subnets: Iterable[Subnet]) -> None:
    """UsageError for a size that the recipe's space has and its method leaves untrained."""
    intact = space(recipe).intact
    others = [str(subnet) for subnet in subnets if subnet != intact]
    if others and recipe.objective.method == "single":
        raise UsageError(
            f"size {', '.join(others)}: objective.method single has trained {intact} alone; take"
            " that one (poa-ds twin writes the recipe of another size)"
        )


def shape(recipe: Recipe) -> Shape:
    """The numbers of the recipe's backbone."""
    return shapes.of(recipe.backbone, recipe.crops.global_size, channels=recipe.data.channels)


def longest_queue(recipe: Recipe, images: int) -> int:
    """The longest distill.queue up to the recipe's that half of the images fill, in whole steps."""
    rows = recipe.batch.slots * recipe.batch.images_per_slot
    return min(recipe.distill.queue, images // 2) // rows * rows


def peak_lr(recipe: Recipe) -> float:
    """The learning rate after the warm-up."""
    growth = recipe.batch.slots * recipe.batch.images_per_slot / REFERENCE_IMAGES
    factors = {"sqrt": sqrt(growth), "linear": growth, "none": 1.0}
    return recipe.schedule.base_lr * factors[recipe.schedule.lr_scaling]


def of(recipe: Recipe, images: int) -> Derived:
    """The derived numbers for a training set of `images` images."""
    schedule = recipe.schedule
    per_step = recipe.batch.slots * recipe.batch.images_per_slot
    per_epoch = schedule.steps_per_epoch or max(1, images // per_step)

    def steps(epochs: float) -> int:
        return round(epochs * per_epoch)

    evaluation, checkpoint = recipe.evaluation.every_epochs, recipe.checkpoint
    checkpoint_steps = max(1, steps(checkpoint.every_epochs))
    return Derived(
        images=images,
        images_per_step=per_step,
        steps_per_epoch=per_epoch,
        steps=max(1, steps(schedule.epochs)),
        lr=peak_lr(recipe),
        warmup_steps=steps(schedule.warmup_epochs),
        ibot_start_step=steps(schedule.ibot_start_epoch),
        freeze_steps=steps(schedule.freeze_last_layer_epochs),
        temperature_steps=steps(schedule.teacher_temperature_epochs),
        evaluation_steps=max(1, steps(evaluation)) if evaluation else 0,
        checkpoint_steps=checkpoint_steps,
        # a multiple, whatever the rounding of the two
        keep_steps=checkpoint_steps * round(checkpoint.keep_every_epochs / checkpoint.every_epochs),
        evaluation_share=_evaluation_share(recipe, images, per_epoch * per_step),
    )


def schedules(recipe: Recipe, images: int) -> Schedules:
    """The recipe's schedules for a training set of `images` images."""
    numbers, schedule = of(recipe, images), recipe.schedule
    return Schedules(
        total_steps=numbers.steps,
        warmup_steps=numbers.warmup_steps,
        freeze_steps=numbers.freeze_steps,
        ibot_start_step=numbers.ibot_start_step,
        temperature_steps=numbers.temperature_steps,
        stretch=schedule.stretch,
        lr=numbers.lr,
        min_lr=schedule.min_lr,
        weight_decay=schedule.weight_decay,
        weight_decay_end=schedule.weight_decay_end,
        momentum=schedule.momentum,
        momentum_end=schedule.momentum_end,
        temperature_start=schedule.teacher_temperature_start,
        temperature=schedule.teacher_temperature,
        alone_steps=alone_steps(recipe, numbers.steps),
    )


def scores_prototypes(recipe: Recipe) -> bool:
    """Whether students and teacher are compared by prototypes, at the teacher's temperature."""
    others = ("seed", "finetune")
    return recipe.objective.method not in others and recipe.objective.loss == "prototypes"


def alone_steps(recipe: Recipe, steps: int) -> int:
    """At the start of so many steps, those in which the intact student learns alone."""
    return round(recipe.objective.slow_start * steps)


def _evaluation_share(recipe: Recipe, images: int, images_per_epoch: int) -> float:
    """Work of all evaluations / work of the training, in forwards of the intact backbone.

    A student's backward costs two forwards; heads and data loading are left out on both sides.
    """
    evaluation, crops, patch = recipe.evaluation, recipe.crops, recipe.backbone.patch_size
    if not evaluation.queries or recipe.finetune.classes:  # labels need no bank
        return 0.0
    sizes = space(recipe)
    views = 2 * crops.global_size**2 + crops.local_count * crops.local_size**2
    step = (2 * crops.global_size**2 + 3 * _students(recipe) * views) / patch**2  # per image
    chosen: list[Subnet] = sizes.select(evaluation.sizes)
    forwards = (evaluation.crop / patch) ** 2 * sum(sizes.cost(subnet) for subnet in chosen)
    bank = evaluation.bank_images or images
    times = recipe.schedule.epochs / evaluation.every_epochs if evaluation.every_epochs else 1.0
    times += evaluation.at_start
    return times * bank * forwards / (recipe.schedule.epochs * images_per_epoch * step)


def _students(recipe: Recipe) -> float:
    """Work of all students of a slot, on average, 1 = the intact one."""
    sizes, method = space(recipe), recipe.objective.method
    menu = sizes.menu()
    if method == "dspnet":
        return sum(sizes.cost(subnet) for subnet in sizes.subnets())
    if method in ("single", "finetune") or (method == "seed" and menu == [sizes.intact]):
        return 1.0
    return 1.0 + sum(sizes.cost(subnet) for subnet in menu) / len(menu)


def describe(recipe: Recipe, images: int) -> str:
    """The table that a run prints at its start: what the recipe amounts to."""
    rows = [*_size_rows(recipe, images), *_schedule_rows(recipe, images)]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def _size_rows(recipe: Recipe, images: int) -> list[tuple[str, str]]:
    numbers, sizes, batch = of(recipe, images), space(recipe), recipe.batch
    names = recipe.backbone.names.items()
    count = len(sizes.subnets())
    learn = {"dspnet": "all in every step", "single": "the largest alone"}
    learn["finetune"] = "with labels"
    how = learn.get(recipe.objective.method, f"drawn {recipe.draws}")
    return [
        ("sizes", f"{count:,} from {sizes.smallest} to {sizes.intact}, {how}"),
        ("names", ", ".join(f"{name} = {size}" for name, size in names) or "none"),
        (
            "images",
            f"{images:,}; {numbers.images_per_step:,} per step"
            f" ({batch.slots} slots x {batch.images_per_slot}),"
            f" {numbers.steps_per_epoch * numbers.images_per_step:,} per epoch",
        ),
    ]


def _schedule_rows(recipe: Recipe, images: int) -> list[tuple[str, str]]:
    numbers, schedule = of(recipe, images), recipe.schedule
    end = schedules(recipe, images).at(numbers.steps - 1)
    return [
        (
            "steps",
            f"{numbers.steps:,} ({schedule.epochs:g} epochs x {numbers.steps_per_epoch:,})",
        ),
        (
            "learning rate",
            f"{numbers.lr:.4g} ({schedule.base_lr:g}, scaling {schedule.lr_scaling}),"
            f" warm-up {numbers.warmup_steps:,} steps, {end.lr:.3g} at the end",
        ),
        ("weight decay", f"{schedule.weight_decay:g} to {end.weight_decay:.4g}"),
        ("momentum", f"{schedule.momentum:g} to {end.momentum:.6g}"),
        *_start_rows(recipe, numbers),
        ("precision", recipe.precision),
        ("checkpoint", _describe_checkpoints(recipe, numbers)),
        ("evaluation", _describe_evaluation(recipe, numbers)),
    ]


def _start_rows(recipe: Recipe, numbers: Derived) -> list[tuple[str, str]]:
    """What begins, or rises, in the course of the run."""
    schedule, rows, starts = recipe.schedule, [], []
    if scores_prototypes(recipe):
        low, high = schedule.teacher_temperature_start, schedule.teacher_temperature
        words = f"{low:g} to {high:g} over {numbers.temperature_steps:,} steps"
        rows.append(("teacher temp.", words))
        starts = [f"prototypes at step {numbers.freeze_steps:,}"]
        starts += [f"iBOT at step {numbers.ibot_start_step:,}"] if recipe.objective.ibot else []
    if alone := alone_steps(recipe, numbers.steps):
        starts.append(f"smaller sizes at step {alone:,}")
    return [*rows, *([("starts", ", ".join(starts))] if starts else [])]


def _describe_checkpoints(recipe: Recipe, numbers: Derived) -> str:
    kept = f", for good every {numbers.keep_steps:,}" if numbers.keep_steps else ""
    last = recipe.checkpoint.keep_last
    return f"every {numbers.checkpoint_steps:,} steps, the last {last:,} are kept{kept}"


def _describe_evaluation(recipe: Recipe, numbers: Derived) -> str:
    evaluation = recipe.evaluation
    if not evaluation.queries:
        return "none (evaluation.queries is empty)"
    when = f"every {numbers.evaluation_steps:,} steps" if numbers.evaluation_steps else "at the end"
    if recipe.finetune.classes:
        return f"{when}: top-1 on {evaluation.queries}"
    everything = f"all {len(space(recipe).subnets()):,} sizes"
    sizes = everything if "all" in evaluation.sizes else ", ".join(evaluation.sizes)
    bank = f"{evaluation.bank_images:,} bank images" if evaluation.bank_images else "the whole bank"
    work = numbers.evaluation_share
    much = f"{100 * work:.2g} % of" if work < 1 else f"{figure(work)} times"
    return f"{when}: {sizes} with {bank}, about {much} the training's work"
