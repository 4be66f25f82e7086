"""The classes of one set of images as numbers of another's, matched by name.

What is measured may have classes that what was learnt from lacks: an error, or, where it is asked
for, images that are left out and counted.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poa_ds.system.errors import UserError

UNKNOWN = -1  # in the place of a number: the other set has no such class
OPTION = "--drop-unknown-classes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of every command that matches classes."""
    parser.add_argument(
        OPTION,
        action="store_true",
        help="leave out, and count, images to measure on of classes that are not learnt from",
    )


def matched(
    own: Sequence[str], place: str, classes: Sequence[str], train: str, *, drop: bool = False
) -> Tensor:
    """(own classes,) int64: of each class of `place`, its number among those of `train`.

    drop: UNKNOWN for one that train lacks. UserError: it lacks one and drop is not given, or all.
    """
    number = {name: i for i, name in enumerate(classes)}
    lacking = [name for name in own if name not in number]
    if own and len(lacking) == len(own):
        raise UserError(f"{place} has no class of {train}, but {_some(lacking)}")
    if lacking and not drop:
        raise UserError(
            f"{place} has {len(lacking)} classes that {train} lacks: {_some(lacking)}; {OPTION} "
            "(in a recipe evaluation.drop_unknown_classes) leaves their images out"
        )
    return torch.tensor([number.get(name, UNKNOWN) for name in own], dtype=torch.int64)


def known(labels: Tensor, numbers: Tensor, place: str) -> Tensor:
    """(n,) booleans: which of the images with these labels are of a class that is learnt from.

    labels: (n,) in the numbers of `place`, none of them missing. UserError: no image is.
    """
    found = numbers[labels] != UNKNOWN
    if len(found) and not found.any():
        raise UserError(f"{place} has no image of a class that is learnt from")
    return found


def record(labels: Tensor, numbers: Tensor) -> dict[str, Any]:
    """For a protocol: how many images and classes are left out; {} where all are known."""
    lacking = numbers == UNKNOWN
    if not lacking.any():
        return {}
    left_out = {"classes": int(lacking.sum()), "images": int(lacking[labels].sum())}
    return {"unknown_classes": left_out}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
