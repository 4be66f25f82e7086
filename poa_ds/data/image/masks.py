"""Block masks (BEiT): rectangles of patches are hidden until a wished number is reached.

The order of the random calls is the published one: the same generator state gives the same masks.
"""

import itertools
import math
import random

import numpy as np
import torch
from torch import Tensor

MIN_PATCHES = 4  # wished area of one rectangle, BEiT
MAX_FRACTION = 0.5  # of the grid in one rectangle
LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
ATTEMPTS = 10  # to place one rectangle


def block_mask(rows: int, columns: int, count: int, rng: random.Random) -> np.ndarray:
    """(rows, columns) bool with at most `count` patches hidden, mostly exactly that many.

    It stops early where no rectangle was found that fits into what is missing.
    """
    mask = np.zeros((rows, columns), bool)
    missing, largest = count, MAX_FRACTION * rows * columns
    while missing > 0:
        added = _add_rectangle(mask, min(missing, largest), rng)
        if not added:
            break
        missing -= added
    return mask


def _add_rectangle(mask: np.ndarray, limit: float, rng: random.Random) -> int:
    """The number of patches newly hidden in `mask`, which is changed; 0 when nothing fitted."""
    rows, columns = mask.shape
    for _ in range(ATTEMPTS):
        area = rng.uniform(MIN_PATCHES, limit)
        aspect = math.exp(rng.uniform(*LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:
            continue
        top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
        window = mask[top : top + height, left : left + width]
        added = height * width - int(window.sum())
        if 0 < added <= limit:
            window[:] = True
            return added
    return 0


def batch_masks(
    crops: int,
    rows: int,
    columns: int,
    *,
    probability: float,
    ratio: tuple[float, float],
    rng: random.Random,
) -> Tensor:
    """(crops, rows * columns) bool: int(crops * probability) crops are masked, in random places.

    The i-th of them hides a fraction from the i-th of equal parts of `ratio` (in float32, as the
    published code draws it).
    """
    masked, patches = int(crops * probability), rows * columns
    edges = torch.linspace(*ratio, masked + 1).numpy()
    masks = []
    for low, high in itertools.pairwise(edges):
        fraction = low + (high - low) * np.float32(rng.random())
        masks.append(block_mask(rows, columns, int(patches * fraction), rng))
    masks += [np.zeros((rows, columns), bool)] * (crops - masked)
    rng.shuffle(masks)
    return torch.from_numpy(np.stack(masks)).flatten(1)
