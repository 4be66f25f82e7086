"""What the values of a recipe must satisfy together, all that is wrong said at once.

The range of a single value is part of its type (tree.py).
"""

from collections.abc import Iterator
from math import isclose

from poa_ds.model import shape as shapes
from poa_ds.model.options import COLOURS, Backbone, Range
from poa_ds.recipe import derived, method_checks
from poa_ds.recipe.tree import Recipe
from poa_ds.system import paths
from poa_ds.system.addresses import Address
from poa_ds.system.errors import UsageError
from poa_ds.system.printable import printable

# of MLflow 3; plain folders and file: are not written any more
STORES = ("sqlite:///", "http://", "https://", "postgresql", "mysql", "mssql", "databricks")
MOST_VALUES = 1_000  # of a width or depth: the sizes are all listed


def check(recipe: Recipe) -> None:
    """UsageError with every contradiction of the recipe, one per line."""
    parts = (_contradictions, _directions, _passwords, _folders)
    _refuse([problem for part in parts for problem in part(recipe)])


def check_kept(recipe: Recipe) -> None:
    """The same for the recipe of a run that is there: how it was trained is not at issue."""
    _refuse([*_contradictions(recipe)])


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UsageError("\n".join(problems))


def _contradictions(recipe: Recipe) -> Iterator[str]:
    yield from [*_space(recipe)] or [*_names(recipe)] or [*_evaluation(recipe)]
    for part in (_crops, _pixels, _schedule, _mlflow, _data, _checkpoint):
        yield from part(recipe)
    yield from method_checks.problems(recipe)


def check_world(recipe: Recipe, world_size: int) -> None:
    """UsageError unless the ranks divide the slots; it lists the numbers of ranks that fit."""
    slots = recipe.batch.slots
    if slots % world_size:
        fitting = [n for n in range(1, slots + 1) if slots % n == 0]
        raise UsageError(
            f"batch.slots {slots} cannot be shared out evenly among {world_size} ranks:"
            f" start {', '.join(map(str, fitting))} ranks, or change batch.slots"
        )


def check_precision(recipe: Recipe, device_type: str) -> None:
    """UsageError where the device ("cpu", "cuda", ...) cannot train in the recipe's precision."""
    if recipe.precision == "fp16" and device_type == "cpu":
        raise UsageError(
            "precision fp16 needs a GPU (DeepSpeed has no fp16 on a CPU):"
            " use precision=fp32 or precision=bf16"
        )


def check_places(recipe: Recipe) -> None:
    """UsageError unless the recipe says where its images are and where its results go."""
    data = recipe.data
    missing = [
        f"{key} is empty: give {key}=DIR, {meaning}"
        for key, value, meaning in (
            ("output_dir", recipe.output_dir, "the folder for checkpoints and metrics"),
            ("data.train", data.train or data.mix, "a folder of images, a list of them, or shards"),
        )
        if not value
    ]
    _refuse([*missing, *method_checks.missing(recipe)])


def check_colours(recipe: Recipe, what: str) -> None:
    """UsageError where `what`, a command, does not read such images: other channels, a range."""
    data = recipe.data
    if data.is_measured:
        other = f"channels {data.channels}" if data.channels != COLOURS else ""
        key = other or "range, .percentiles or .pages"
        raise UsageError(
            f"data.{key}: {what} reads images of {COLOURS} channels alone, of 8 bits each"
        )


def check_method(recipe: Recipe) -> None:
    """UsageError unless the recipe has what its method needs besides images."""
    _refuse([*method_checks.missing(recipe)])


def check_images(recipe: Recipe, images: int) -> None:
    """UsageError where the recipe's method needs more images than there are."""
    _refuse([*method_checks.data_problems(recipe, images)])


def _range(key: str, numbers: Range) -> Iterator[str]:
    if numbers.max < numbers.min:
        yield f"{key}.max {numbers.max} is below {key}.min {numbers.min}"
    elif (count := (numbers.max - numbers.min) // numbers.step + 1) > MOST_VALUES:
        yield (
            f"{key} has {count:,} values from {numbers.min} to {numbers.max}, of {MOST_VALUES:,} at"
            f" most: {key}.step {numbers.step} is too small"
        )
    elif (numbers.max - numbers.min) % numbers.step:
        reached = shapes.values(numbers)[-1]
        yield (
            f"{key}.step {numbers.step} does not lead from {numbers.min} to {numbers.max}:"
            f" {key}.max may be {reached} or {reached + numbers.step}"
        )


def _space(recipe: Recipe) -> Iterator[str]:
    backbone = recipe.backbone
    if backbone.widths and backbone.width != Backbone().width:
        yield (
            f"backbone.width and backbone.widths {[*backbone.widths]}: give one of them (remove"
            " backbone.width for a list)"
        )
    ranges = [*_range("backbone.width", backbone.width), *_range("backbone.depth", backbone.depth)]
    yield from ranges or shapes.kind(backbone).problems(backbone)


def _names(recipe: Recipe) -> Iterator[str]:
    sizes = derived.bare_space(recipe)
    for name, size in recipe.backbone.names.items():
        if name == "all" or "," in name:
            yield f"backbone.names.{name}: a name has no comma and is not `all` (every size)"
        if not name.isprintable():
            yield f"backbone.names.{printable(name)}: a name has only characters that print"
        try:
            sizes.parse(size)
        except UsageError as error:
            yield f"backbone.names.{name}: {error}"


def _crops(recipe: Recipe) -> Iterator[str]:
    crops, patch = recipe.crops, recipe.backbone.patch_size
    sizes = {"crops.global_size": crops.global_size, "evaluation.crop": recipe.evaluation.crop}
    if crops.local_count:
        sizes["crops.local_size"] = crops.local_size
    for key, size in sizes.items():
        unit, name = patch, f"backbone.patch_size {patch}"
        if key == "crops.global_size":
            unit, name = derived.shape(recipe).multiple()
        if size % unit:
            near = max(unit, size // unit * unit)
            yield f"{key} {size} is not a multiple of {name}: {near} or {near + unit} would be"
    for key, (low, high), limit in (
        ("crops.global_scale", crops.global_scale, 1.0),
        ("crops.local_scale", crops.local_scale, 1.0),
        ("augmentation.blur_sigma", recipe.augmentation.blur_sigma, float("inf")),
        ("masks.ratio", recipe.masks.ratio, 1.0),
    ):
        if low > high or high > limit:
            top = " and the second at most 1" if limit == 1.0 else ""
            yield f"{key} is [{low:g}, {high:g}]: the first must not exceed the second{top}"
    smallest = min(crops.global_size, crops.local_size if crops.local_count else 10**9)
    if recipe.augmentation.blur_kernel // 2 >= smallest:
        yield (
            f"augmentation.blur_kernel {recipe.augmentation.blur_kernel} does not fit into crops of"
            f" {smallest} px: it must be below {2 * smallest}"
        )
    if recipe.augmentation.blur_kernel % 2 == 0:
        yield f"augmentation.blur_kernel {recipe.augmentation.blur_kernel} is even: it must be odd"
    if recipe.objective.koleo and recipe.batch.images_per_slot < 2:
        yield "batch.images_per_slot 1: objective.koleo compares the images of a slot, it needs 2"


COLOURFUL = ("saturation", "hue", "gray")  # changes that only red, green and blue know


def _pixels(recipe: Recipe) -> Iterator[str]:
    channels = recipe.data.channels
    for key, values in (("mean", recipe.augmentation.mean), ("std", recipe.augmentation.std)):
        if len(values) != channels:
            yield (
                f"augmentation.{key} {[*values]} is of {len(values)} channels, data.channels is"
                f" {channels}: give {channels} numbers"
            )

    yield from _numbers(recipe)
    if channels != COLOURS:
        left = [f"augmentation.{key}" for key in COLOURFUL if getattr(recipe.augmentation, key)]
        if left:
            zero = " ".join(f"{key}=0" for key in left)
            yield f"{', '.join(left)}: of {COLOURS} colours, data.channels is {channels}: {zero}"


def _numbers(recipe: Recipe) -> Iterator[str]:
    """What is wrong with how an image's numbers become 0 to 1."""
    data = recipe.data
    for key, ends in (("range", data.range), ("percentiles", data.percentiles)):
        if ends and (len(ends) != 2 or not ends[0] < ends[1]):
            yield f"data.{key} {[*ends]}: give [LOW, HIGH], the first below the second"
    if any(not 0 <= share <= 100 for share in data.percentiles):
        yield f"data.percentiles {[*data.percentiles]}: they lie within 0 and 100"
    if data.range and data.percentiles:
        yield "data.range and data.percentiles: each says what becomes 0 and 1, give one of them"
    if data.is_measured and data.decoder != "torchvision":
        yield f"data.decoder {data.decoder} reads ordinary images alone: data.decoder=torchvision"
    if data.is_measured and recipe.finetune.classes:
        yield "objective.method finetune learns from ordinary images alone (three colours, 8 bits)"


def _schedule(recipe: Recipe) -> Iterator[str]:
    schedule = recipe.schedule
    if schedule.warmup_epochs > schedule.epochs:
        yield (
            f"schedule.warmup_epochs {schedule.warmup_epochs:g} exceeds"
            f" schedule.epochs {schedule.epochs:g}"
        )


def _directions(recipe: Recipe) -> Iterator[str]:
    """Schedules that run the wrong way; every one may be constant."""
    schedule, batch = recipe.schedule, recipe.batch
    peak = derived.peak_lr(recipe)
    if peak < schedule.min_lr:
        yield (
            f"schedule.base_lr {schedule.base_lr:g} is below schedule.min_lr {schedule.min_lr:g}"
            f" (scaled by schedule.lr_scaling {schedule.lr_scaling} to {peak:.3g} for"
            f" {batch.slots * batch.images_per_slot:,} images per step): the learning rate would"
            " rise to its end"
        )
    pairs = [("weight_decay", "weight_decay_end"), ("momentum", "momentum_end")]
    if schedule.teacher_temperature_epochs:
        pairs.append(("teacher_temperature_start", "teacher_temperature"))
    for first, last in pairs:
        start, end = getattr(schedule, first), getattr(schedule, last)
        if end < start:
            yield (
                f"schedule.{last} {end:g} is below schedule.{first} {start:g}: it would fall in"
                " the course of the run; give the same value twice for a constant one"
            )


def _passwords(recipe: Recipe) -> Iterator[str]:
    """Addresses of images are kept with the run, and shown: they must not open anything."""
    data, evaluation = recipe.data, recipe.evaluation
    places = [("data.train", data.train), *(("data.mix", place) for place in data.mix)]
    places += [("evaluation.queries", evaluation.queries), ("evaluation.bank", evaluation.bank)]
    for key, place in places:
        if Address(place).has_password:
            yield (
                f"{key} {place} holds a password, which would be kept with every checkpoint: fsspec"
                " takes it from its own files and variables, a pipe: command from a variable"
            )


def _folders(recipe: Recipe) -> Iterator[str]:
    """What a run writes lies on a file system."""
    for key, place in (("output_dir", recipe.output_dir), ("data.cache", recipe.data.cache)):
        if paths.is_address(place):
            yield f"{key} {place} is an address: it must be a folder of a file system"


def _checkpoint(recipe: Recipe) -> Iterator[str]:
    every, keep = recipe.checkpoint.every_epochs, recipe.checkpoint.keep_every_epochs
    times = round(keep / every)
    if keep and not (times and isclose(keep, times * every)):
        yield (
            f"checkpoint.keep_every_epochs {keep:g} is not a multiple of"
            f" checkpoint.every_epochs {every:g}: {max(1, times) * every:g} would be"
        )


def _mlflow(recipe: Recipe) -> Iterator[str]:
    uri = recipe.mlflow.uri
    if uri and not uri.startswith(STORES):
        yield (
            f"mlflow.uri {uri!r} is not a store that MLflow writes to: it begins with one of"
            f" {', '.join(STORES)} (empty: a sqlite file in the output directory)"
        )


def _data(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    if data.train and data.mix:
        yield f"data.train {data.train} and data.mix: give one of them"
    if data.mix and recipe.evaluation.queries and not recipe.evaluation.bank:
        yield "evaluation.bank is empty, and data.mix has no one folder to take its place: name one"
    if data.mode == "stream":
        if not data.images:
            yield "data.images is 0: data.mode stream needs to be told how many images an epoch has"
        if data.mix or data.block_shards:
            yield "data.mode stream: data.mix and data.block_shards are for folders"
        if recipe.evaluation.queries and not recipe.evaluation.bank:
            yield "evaluation.bank is empty, and data.mode stream has no folder for it: name one"
        if recipe.evaluation.online.labels:
            yield (
                "evaluation.online.labels true: data.mode stream does not know its classes"
                " beforehand, remove it"
            )
    elif data.images:
        yield f"data.images {data.images}: a folder says itself how many it has (remove it)"
    train = () if data.mode == "stream" else (data.train,)
    places = (*train, *data.mix, recipe.evaluation.queries, recipe.evaluation.bank)
    remote = [place for place in places if "://" in place]
    if remote and not data.cache:
        yield f"data.cache is empty: {remote[0]} needs a folder for its shards on this node"
    if data.cache_gb and not data.block_shards:
        yield (
            f"data.cache_gb {data.cache_gb:g} needs data.block_shards (such as 16): without blocks"
            " every step reads everywhere, and shards would be fetched again and again"
        )


def _evaluation(recipe: Recipe) -> Iterator[str]:
    evaluation = recipe.evaluation
    try:
        derived.space(recipe).select(evaluation.sizes)
    except UsageError as error:
        yield f"evaluation.sizes: {error}, or all"
    if evaluation.report_k not in evaluation.k:
        yield f"evaluation.report_k {evaluation.report_k} is not in evaluation.k {[*evaluation.k]}"
    if evaluation.resize < evaluation.crop:
        yield f"evaluation.resize {evaluation.resize} is below evaluation.crop {evaluation.crop}"
    largest = max(evaluation.k)
    if 0 < evaluation.bank_images < largest:
        yield (
            f"evaluation.bank_images {evaluation.bank_images} is below the largest evaluation.k"
            f" {largest} (0 = the whole bank)"
        )
