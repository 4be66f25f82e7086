"""Keys of a recipe that `poa-ds adapt` fills in itself, each with what says it in their place."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import override

# of the backbone, what a recipe says of the training and no weights tell
TRAINING = ("drop_path", "activation_checkpointing", "residual", "small_bias")
IMAGES, IMPORT, BEGINS = "give --images", "`poa-ds import` finds it", "it is what --weights become"
OWNED = {
    **{"output_dir": "give --out", "start": BEGINS, "distill.teacher": BEGINS},
    **{"data.train": IMAGES, "data.mix": IMAGES, "evaluation.queries": IMAGES},
    **{"crops.global_size": "give --image-size", "crops.local_size": "give --image-size"},
    **{"augmentation.mean": "give --mean", "augmentation.std": "give --std"},
    **{"evaluation.resize": IMPORT, "evaluation.crop": IMPORT},
    "evaluation.sizes": "every size is measured",
    "evaluation.at_start": "the stage `before` measures the same",
    **{"backbone.width": "give --widths", "backbone.widths": "give --widths"},
    **{"backbone.depth": "give --depths", "backbone.head_dim": "give --head-dim"},
    "backbone.input_scale": "give --input-scale",
    "backbone": "the weights say it",
}


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
