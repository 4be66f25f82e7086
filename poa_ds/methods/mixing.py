"""Mixup and cutmix of a slot's images, and their labels: by the slot alone.

As timm's Mixup in its mode `batch`: one draw for all images, each of which meets the one at the
other end of the slot.
"""

import random
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.recipe.tree import Finetune


@dataclass(frozen=True)
class Mix:
    """share: of an image that stays. cut: a box is changed, else every pixel is a mean.

    row, column: middle of the box, as shares of the sides.
    """

    share: float
    cut: bool = False
    row: float = 0.0
    column: float = 0.0

    @classmethod
    def drawn(cls, options: Finetune, rng: random.Random) -> "Mix":
        cut = options.cutmix > 0 and (not options.mixup or rng.random() < options.switch)
        alpha = options.cutmix if cut else options.mixup
        share = rng.betavariate(alpha, alpha) if alpha else 1.0
        return cls(share, cut, rng.random(), rng.random())

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) of what is changed, inside of the image."""
        side = sqrt(1 - self.share)
        rows = _span(int(self.row * height), int(height * side), height)
        return *rows, *_span(int(self.column * width), int(width * side), width)

    def of(self, images: Tensor) -> tuple[Tensor, float]:
        """(images (B, 3, H, W) of which each holds a part of another, the share that stayed)."""
        if not self.cut:
            return images * self.share + images.flip(0) * (1 - self.share), self.share
        height, width = images.shape[-2:]
        top, bottom, left, right = self.box(height, width)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(middle: int, length: int, whole: int) -> tuple[int, int]:
    return max(middle - length // 2, 0), min(middle + (length + 1) // 2, whole)


def targets(labels: Tensor, classes: int, share: float, smoothing: float) -> Tensor:
    """(B, classes) that sum to 1: of each image's label that share, of the other's the rest."""
    smooth = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return smooth * share + smooth.flip(0) * (1 - share)


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Its mean over the images, in float32 or better."""
    return torch.sum(-wanted * F.log_softmax(logits.float(), dim=-1), dim=-1).mean()
