"""The images that a fine-tuning learns from and is measured on, and what may be wrong with them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.selection import Selection
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


def measured_on(folder: ShardFolder, train: ShardFolder | Selection) -> np.ndarray:
    """The numbers of the images of a folder that have a label, to measure on.

    UserError: there are none, the folder is that of the training, or has classes that it lacks.
    """
    whole = train.folder if isinstance(train, Selection) else train
    if folder.hash == whole.hash:
        raise UsageError(f"{train.path} and {folder.path} hold the same images")
    numbers = np.flatnonzero(folder.labels >= 0)
    if not len(numbers):
        raise UserError(f"{folder.path} has no labels")
    class_numbers(folder, train.classes, str(train.path))
    return numbers


def class_numbers(folder: ShardFolder, classes: Sequence[str], train: str) -> torch.Tensor:
    """(own classes,) the number among `classes`, of the images `train`, of each own, by name."""
    number = {name: i for i, name in enumerate(classes)}
    lacking = [name for name in folder.classes if name not in number]
    if lacking:
        raise UserError(
            f"{folder.path} has {len(lacking)} classes that {train} lacks: {lacking[:3]}"
        )
    return torch.tensor([number[name] for name in folder.classes])
