"""What a recipe must satisfy because of its method, each method's own rules in one place."""

from collections.abc import Callable, Iterable, Iterator

from poa_ds.model import shape as shapes
from poa_ds.model.tucker.shape import TuckerShape
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe

WITHOUT_AVERAGE = ("seed", "finetune")  # whose students learn from something else
OWN_IMITATION = {"dspnet": "slimmable.imitation", "seed": "distill.imitation"}


def problems(recipe: Recipe) -> Iterator[str]:
    """What contradicts the recipe's method, in words."""
    if recipe.objective.slow_start and recipe.objective.method in ("seed", "single", "finetune"):
        yield (
            f"objective.slow_start {recipe.objective.slow_start:g}: {recipe.objective.method} has"
            " no smaller students that could wait, remove it"
        )
    own = OWN_IMITATION.get(recipe.objective.method)
    if own and recipe.objective.imitation != Recipe().objective.imitation:
        yield (
            f"objective.imitation {recipe.objective.imitation:g}: of {recipe.objective.method} it"
            f" is {own}, remove it"
        )
    if recipe.objective.koleo_students != "all":
        alone = recipe.objective.method in ("seed", "single", "finetune")
        if alone or not recipe.objective.koleo:
            why = f"{recipe.objective.method} has one student" if alone else "objective.koleo is 0"
            yield (f"objective.koleo_students {recipe.objective.koleo_students}: {why}, remove it")
    if recipe.heads.elastic == "own":
        yield from _own_heads(recipe)
    if recipe.finetune.classes and recipe.objective.method != "finetune":
        yield (
            f"finetune.classes {recipe.finetune.classes}: {recipe.objective.method} learns without"
            " labels, remove it"
        )
    if recipe.evaluation.online.labels and recipe.objective.method in WITHOUT_AVERAGE:
        yield (
            f"evaluation.online.labels true: {recipe.objective.method} has no teacher whose"
            " features it could read, remove it"
        )
    yield from PROBLEMS.get(recipe.objective.method, lambda _: ())(recipe)
    if recipe.objective.loss == "byol":
        yield from _byol(recipe)


def missing(recipe: Recipe) -> Iterable[str]:
    """What a run of the recipe's method needs besides images and an output directory."""
    if recipe.objective.method == "seed" and not recipe.distill.teacher:
        yield (
            "distill.teacher is empty: give distill.teacher=RUN or RUN:SIZE, a folder that"
            " poa-ds extract wrote, or timm:NAME=FILE"
        )


def data_problems(recipe: Recipe, images: int) -> Iterable[str]:
    """What the method asks of a training set of so many images, in words."""
    if recipe.objective.method != "seed" or recipe.distill.queue <= images // 2:
        return
    largest, rows = derived.longest_queue(recipe, images), _rows(recipe)
    smaller = (
        f"steps of at most {images // 2:,} images (batch.slots x batch.images_per_slot, {rows:,})"
    )
    remedy = f"at most distill.queue={largest}" if largest else smaller
    yield (
        f"distill.queue {recipe.distill.queue:,} is more than half of the {images:,} images: a view"
        f" would meet its own image there; use {remedy}"
    )


def _rows(recipe: Recipe) -> int:
    return recipe.batch.slots * recipe.batch.images_per_slot


def _seed(recipe: Recipe) -> Iterator[str]:
    rows, queue = _rows(recipe), recipe.distill.queue
    if queue % rows:
        near = max(queue // rows, 1) * rows
        yield (
            f"distill.queue {queue:,} is not a multiple of the {rows:,} images of a step"
            f" (batch.slots x batch.images_per_slot): {near} or {near + rows} would be"
        )
    count = recipe.crops.local_count
    if count and not recipe.distill.local:
        yield (
            f"crops.local_count {count}: seed learns from global crops alone, write 0, or"
            " distill.local=true"
        )
    if recipe.distill.local and not count:
        yield "distill.local true: crops.local_count is 0, give a number of local crops (such as 6)"


def _byol(recipe: Recipe) -> Iterator[str]:
    options = recipe.objective
    if options.method in ("seed", "finetune"):
        yield f"objective.loss byol: {options.method} has a loss of its own, remove objective.loss"
        return
    for key, value in (("ibot", options.ibot), ("koleo", options.koleo)):
        if value:
            yield (
                f"objective.{key} {value:g}: objective.loss byol has no such term, write"
                f" objective.{key}=0"
            )
    if options.dino != 1:
        yield f"objective.dino {options.dino:g}: objective.loss byol has no DINO, remove it"
    if recipe.heads.separate_ibot:
        yield "heads.separate_ibot true: objective.loss byol compares no patches, remove it"


def _own_heads(recipe: Recipe) -> Iterator[str]:
    options, remedy = recipe.objective, "write heads.elastic=shared"
    if options.method not in ("poa", "sweet"):
        yield f"heads.elastic own: objective.method {options.method} has none, {remedy}"
    elif options.loss != "prototypes":
        yield f"heads.elastic own: objective.loss {options.loss} has no such heads, {remedy}"


def _dspnet(recipe: Recipe) -> Iterator[str]:
    if recipe.draws != Recipe().draws:
        yield f"draws {recipe.draws}: dspnet trains all sizes in every step, remove draws"


def _sweet(recipe: Recipe) -> Iterator[str]:
    if shapes.kind(recipe.backbone) is not TuckerShape:
        yield (
            f"backbone.name {recipe.backbone.name}: sweet makes the matrices of a vision"
            " transformer from a template, write backbone.name=tucker"
        )


def _finetune(recipe: Recipe) -> Iterator[str]:
    by_hand = "`poa-ds eval finetune RUN` writes such recipes"
    if recipe.finetune.classes < 2:
        yield (
            f"finetune.classes {recipe.finetune.classes}: objective.method finetune needs the"
            f" number of classes, 2 at least ({by_hand})"
        )
    sizes = len(derived.space(recipe).subnets())
    if sizes > 1:
        yield (
            f"objective.method finetune trains one size, and the backbone has {sizes}: {by_hand}"
        )
    if recipe.finetune.subset and recipe.finetune.share < 1:
        yield (
            f"finetune.share {recipe.finetune.share:g} and finetune.subset"
            f" {recipe.finetune.subset}: images are drawn or named, remove one of them"
        )
    if recipe.crops.local_count:
        yield (
            f"crops.local_count {recipe.crops.local_count}: finetune sees one crop of an image,"
            " write 0"
        )
    if recipe.masks.probability:
        yield f"masks.probability {recipe.masks.probability:g}: finetune hides no patch, write 0"
    if recipe.data.mix or recipe.data.mode == "stream":
        yield "data.mix and data.mode stream: finetune reads one shard folder, data.train"


PROBLEMS: dict[str, Callable[[Recipe], Iterable[str]]] = {
    "dspnet": _dspnet,
    "finetune": _finetune,
    "seed": _seed,
    "sweet": _sweet,
}
