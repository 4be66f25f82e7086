"""The images that a fine-tuning learns from and is measured on, and what may be wrong with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.selection import Selection
from poa_ds.evaluate import classes
from poa_ds.evaluate.split import Listed, drawn
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError, UserError


def learnt_from(folder: ShardFolder, recipe: Recipe) -> ShardFolder | Selection:
    """Its images with a label: of each class the share that the recipe says, one at least, or
    those that its file names.

    UserError: they have too few classes, or more than the recipe's classifier; a name is unknown.
    """
    labels, options = folder.labels, recipe.finetune
    numbers = np.flatnonzero(labels >= 0)
    if options.subset:
        keys = [folder.name(number) for number in numbers.tolist()]
        listed = Listed.read(Path(options.subset))
        numbers = numbers[listed.rows(keys, f"the labelled images of {folder.path}")]
    there = len(np.unique(labels[numbers]))
    if there < 2:
        what = "one class: there is nothing to separate" if there else "no class"
        raise UserError(f"the images of {folder.path} have {what}")
    if len(folder.classes) != options.classes:
        raise UsageError(
            f"finetune.classes {options.classes}: {folder.path} has {len(folder.classes)}"
        )
    if options.share < 1:
        chosen = drawn(torch.from_numpy(labels[numbers]), options.share, seed=recipe.seed)
        numbers = numbers[chosen.numpy()]
    return folder if len(numbers) == len(folder) else Selection(folder, numbers)


@dataclass(frozen=True)
class Asked:
    """Images to measure on. numbers: theirs in the folder. classes: of each of the folder's, its
    number among those of the training, UNKNOWN for none.
    """

    folder: ShardFolder
    numbers: np.ndarray
    classes: torch.Tensor
    left_out: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """For a protocol: how many of which images."""
        about = {"images": len(self.numbers), "of": len(self.folder)}
        return about | {"index_sha256": self.folder.hash} | self.left_out


def measured_on(
    folder: ShardFolder, train: ShardFolder | Selection, *, drop: bool = False
) -> Asked:
    """The images of a folder that have a label.

    drop: but for those of classes that the training lacks. UserError: there are none, the folder
    is that of the training, or has such classes.
    """
    whole = train.folder if isinstance(train, Selection) else train
    if folder.hash == whole.hash:
        raise UsageError(f"{train.path} and {folder.path} hold the same images")
    numbers = np.flatnonzero(folder.labels >= 0)
    if not len(numbers):
        raise UserError(f"{folder.path} has no labels")
    place, labels = str(folder.path), torch.from_numpy(folder.labels[numbers]).long()
    own = classes.matched(folder.classes, place, train.classes, str(train.path), drop=drop)
    kept = classes.known(labels, own, place).numpy()
    return Asked(folder, numbers[kept], own, classes.record(labels, own))
