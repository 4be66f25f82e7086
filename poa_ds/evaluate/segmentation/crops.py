"""The same crop of an image and of its mask, and the sizes at which images are read."""

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.evaluate.segmentation.colours import distorted
from poa_ds.evaluate.segmentation.layouts import resized_mask
from poa_ds.evaluate.segmentation.masks import IGNORED

RATIO, FLIP = (0.5, 2.0), 0.5  # of the short side to the crop, in learning; probability
LONG = 4  # crops that a long side may be: images of other shapes have a shorter short side


TRIES = 10  # mmsegmentation's, for a crop that no class fills


@dataclass(frozen=True)
class Draw:
    """How crops to learn from are drawn.

    fill: the colour (3,) uint8 where the image ends; no class is there. cat_max_ratio: most of a
    crop's pixels that have a class may be of one, where a few tries find such a crop. distort:
    colours, behind all else.
    """

    crop: int
    fill: Tensor
    cat_max_ratio: float = 1.0
    distort: bool = False


def random_pair(
    image: Tensor, mask: Tensor, draw: Draw, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """(image (3, crop, crop) uint8, classes (crop, crop) int16), from anywhere, maybe flipped."""
    crop, (low, high) = draw.crop, RATIO
    image = resized(image, crop, low + (high - low) * rng.random())
    mask = resized_mask(mask, tuple(image.shape[-2:]))
    image, mask = padded(image, crop, draw.fill), padded_mask(mask, crop)
    for _ in range(TRIES):
        top, left = (int(rng.random() * (side - crop + 1)) for side in mask.shape)
        part = mask[top : top + crop, left : left + crop]
        if draw.cat_max_ratio >= 1 or largest_share(part) < draw.cat_max_ratio:
            break
    image = image[:, top : top + crop, left : left + crop]
    if rng.random() < FLIP:
        image, part = image.flip(-1), part.flip(-1)
    return (distorted(image, rng) if draw.distort else image), part


def largest_share(mask: Tensor) -> float:
    """Of the pixels that have a class, those of the most frequent one; 1 where none has."""
    known = mask[mask != IGNORED]
    return int(known.unique(return_counts=True)[1].max()) / len(known) if len(known) else 1.0


def resized(image: Tensor, crop: int, ratio: float = 1.0) -> Tensor:
    """The image (3, H, W) uint8 with a short side of ratio x crop, the long side LONG times it."""
    height, width = image.shape[-2:]
    scale = ratio * min(crop / min(height, width), LONG * crop / max(height, width))
    size = tuple(max(1, round(side * scale)) for side in (height, width))
    box = image[None].contiguous(memory_format=torch.channels_last)  # torch's fast path for bytes
    return F.interpolate(box, size, mode="bilinear", antialias=True)[0]


def padded(image: Tensor, crop: int, fill: Tensor) -> Tensor:
    """The image, wherever it is smaller than the crop filled up at its lower and right ends."""
    _, height, width = image.shape
    if min(height, width) >= crop:
        return image
    whole = fill[:, None, None].expand(3, max(height, crop), max(width, crop)).clone()
    whole[:, :height, :width] = image
    return whole


def padded_mask(mask: Tensor, crop: int) -> Tensor:
    """The same of a mask (H, W): what is filled up has no class."""
    height, width = mask.shape
    ends = (0, max(crop - width, 0), 0, max(crop - height, 0))
    return F.pad(mask, ends, value=IGNORED)
