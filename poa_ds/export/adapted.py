"""The recipes of `poa-ds adapt`: the keys that it fills in itself, each with what says it in their
place, and the second stage, POA from where the first one ended.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from poa_ds.model.options import COLOURS
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import override

# of the backbone, what a recipe says of the training and no weights tell
TRAINING = ("drop_path", "activation_checkpointing", "residual", "small_bias")
IMAGES, IMPORT, BEGINS = "give --images", "`poa-ds import` finds it", "it is what --weights become"
OF_COLOURS = ("saturation", "hue", "gray")  # changes that red, green and blue alone have
OWNED = {
    **{"output_dir": "give --out", "start": BEGINS, "distill.teacher": BEGINS},
    **{"data.train": IMAGES, "data.mix": IMAGES, "evaluation.queries": IMAGES},
    **{"crops.global_size": "give --image-size", "crops.local_size": "give --image-size"},
    **{"data.channels": "give --channels", "data.range": "give --range"},
    **{"augmentation.mean": "give --mean", "augmentation.std": "give --std"},
    **{"evaluation.resize": IMPORT, "evaluation.crop": IMPORT},
    "evaluation.sizes": "every size is measured",
    "evaluation.at_start": "the stage `before` measures the same",
    **{"backbone.width": "give --widths", "backbone.widths": "give --widths"},
    **{"backbone.depth": "give --depths", "backbone.head_dim": "give --head-dim"},
    "backbone.input_scale": "give --input-scale",
    "backbone": "the weights say it",
}


@dataclass(frozen=True)
class Places:
    """Folders. queries: empty where nothing can be measured. out: of the run."""

    start: str
    out: str
    train: str
    queries: str


def filled(base: Recipe, network: Recipe, places: Places, images: int) -> Recipe:
    """`base` for the network that `network` describes, with these folders and so many images.

    The queue is at most half of the images, whole steps.
    """
    queue = derived.longest_queue(base, images) or base.distill.queue  # then told as too long
    crops, pixels, seen = network.crops, network.augmentation, network.evaluation
    training = {key: getattr(base.backbone, key) for key in TRAINING}
    return replace(
        base,
        output_dir=places.out,
        start=places.start,
        backbone=replace(network.backbone, **training),
        distill=replace(base.distill, teacher=places.start, queue=queue),
        crops=replace(base.crops, global_size=crops.global_size, local_size=crops.local_size),
        augmentation=replace(
            base.augmentation, mean=pixels.mean, std=pixels.std, **colours(network.data.channels)
        ),
        data=replace(
            base.data,
            train=places.train,
            channels=network.data.channels,
            range=network.data.range,
        ),
        evaluation=replace(
            base.evaluation,
            queries=places.queries,
            sizes=("all",),
            at_start=False,  # the stage `before` has measured the same
            resize=seen.resize,
            crop=seen.crop,
        ),
    )


def colours(channels: int) -> dict[str, float]:
    """What of a recipe's augmentation images of so many channels cannot have; {} of three."""
    return {} if channels == COLOURS else dict.fromkeys(OF_COLOURS, 0.0)


def then_poa(first: Recipe, out: str, epochs: float) -> Recipe:
    """POA from the network that the run of `first` deploys, for so many epochs.

    Objective and number of local crops are the standard ones. Its heads are new: in the first fifth
    of the run, one epoch at most, their prototypes stand still and patches are not masked.
    """
    standard, schedule, soon = Recipe(), first.schedule, min(1.0, epochs / 5)
    named = first.mlflow.run_name
    return replace(
        first,
        output_dir=out,
        start=first.output_dir,
        objective=standard.objective,
        distill=standard.distill,
        crops=replace(first.crops, local_count=standard.crops.local_count),
        schedule=replace(
            schedule,
            epochs=epochs,
            warmup_epochs=min(schedule.warmup_epochs, soon),
            ibot_start_epoch=soon,
            freeze_last_layer_epochs=soon,
            teacher_temperature_epochs=epochs / 3,
        ),
        mlflow=replace(first.mlflow, run_name=f"{named}_then_poa" if named else ""),
    )


def check(overrides: Sequence[str]) -> None:
    """UsageError where one of them would be written over, with the remedy."""
    tree: dict[str, Any] = {}
    for assignment in overrides:
        tree = override(tree, assignment, Recipe)
    found = {key: owner for key in _keys(tree) if (owner := _owner(key))}
    if found:
        told = "; ".join(f"{key}: {OWNED[owner]}" for key, owner in found.items())
        raise UsageError(f"overrides that adapt fills in itself, leave them out: {told}")


def _owner(key: str) -> str:
    """The entry of OWNED that the key is of; empty: none."""
    if key.removeprefix("backbone.") in TRAINING:
        return ""
    return next((own for own in OWNED if key == own or key.startswith(f"{own}.")), "")


def _keys(tree: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """a.b of every value in nested mappings."""
    for name, value in tree.items():
        key = f"{before}{name}"
        if isinstance(value, Mapping) and value:
            yield from _keys(value, f"{key}.")
        else:
            yield key
