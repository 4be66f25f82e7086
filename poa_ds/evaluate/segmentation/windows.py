"""The classes of all pixels of an image of any size: crops side by side, their scores averaged."""

import torch
from torch import Tensor

from poa_ds.evaluate.segmentation.heads import upsampled

BYTES = 1 << 28  # of scores at once, of as many classes as that holds


def places(height: int, width: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """(top, left) of the crops: `stride` apart, the last ones at the ends of the image."""
    tops, lefts = (
        [min(first, side - crop) for first in range(0, side - crop + stride, stride)]
        for side in (height, width)
    )
    return [(top, left) for top in tops for left in lefts]


def cut(image: Tensor, where: list[tuple[int, int]], crop: int) -> Tensor:
    """(n, 3, crop, crop) of an image that is no smaller than one."""
    return torch.stack([image[:, top : top + crop, left : left + crop] for top, left in where])


def predicted(
    scores: Tensor,
    where: list[tuple[int, int]],
    *,
    crop: int,
    size: tuple[int, int],
    true_size: tuple[int, int],
) -> Tensor:
    """(H, W) int64: the class with the highest score of each pixel; of equals the first.

    scores (n, K, rows, columns): of the crops. size: of the image that they are cut from, without
    what filled it up; true_size (H, W): before it was resized.
    """
    height, width = (max(end + crop, side) for end, side in zip(where[-1], size, strict=True))
    seen = scores.new_zeros(height, width)
    for top, left in where:
        seen[top : top + crop, left : left + crop] += 1
    pixels = max(height * width, true_size[0] * true_size[1])
    block = max(1, BYTES // (scores.element_size() * pixels))
    best = scores.new_full(true_size, float("-inf"))
    chosen = torch.zeros(true_size, dtype=torch.int64, device=scores.device)
    for first in range(0, scores.shape[1], block):
        some = scores[:, first : first + block]
        canvas = scores.new_zeros(some.shape[1], height, width)
        for (top, left), one in zip(where, some, strict=True):
            canvas[:, top : top + crop, left : left + crop] += upsampled(one[None], (crop, crop))[0]
        canvas = (canvas / seen)[:, : size[0], : size[1]]
        highest, number = upsampled(canvas[None], true_size)[0].max(0)
        higher = highest > best
        best[higher], chosen[higher] = highest[higher], first + number[higher]
    return chosen
