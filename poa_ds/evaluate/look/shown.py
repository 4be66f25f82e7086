"""Pictures of images that are measurements: three of their channels, or the mean of all."""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from poa_ds.model.options import COLOURS
from poa_ds.system.arguments import count
from poa_ds.system.errors import UsageError

MEAN: tuple[int, ...] = ()  # in the place of channels


def numbers(text: str) -> tuple[int, ...]:
    """The type of an option: three numbers of channels from 1 on, or `mean`."""
    if text == "mean":
        return MEAN
    found = tuple(count(part) for part in text.split(","))
    if len(found) != COLOURS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither mean nor three numbers as in 4,3,2")
    return found


def chosen(channels: int, asked: Sequence[int] | None) -> Sequence[int]:
    """The channels to show, from 0 on, or MEAN. asked: from 1 on, or MEAN; None: the first three.

    UsageError: there are fewer.
    """
    if asked is None:
        return range(COLOURS) if channels >= COLOURS else MEAN
    if asked and max(asked) > channels:
        raise UsageError(f"--show {max(asked)}: images have {channels} channels")
    return [number - 1 for number in asked]


def pictures(images: Tensor, channels: Sequence[int]) -> Tensor:
    """(B, 3, S, S) uint8 of images (B, C, S, S) from 0 to 255; ordinary ones stay as they are."""
    if images.dtype == torch.uint8:
        return images
    shown = images[:, [*channels]] if channels else images.mean(1, keepdim=True)
    return shown.round().clamp(0, 255).to(torch.uint8).expand(-1, COLOURS, -1, -1)
