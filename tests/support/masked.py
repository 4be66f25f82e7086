"""Made images with masks: discs, squares and crosses on noise, in the layout of a plain folder."""

from pathlib import Path

import numpy as np
from PIL import Image

KINDS = ("noise", "disc", "square", "cross")


def shape(number: int, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(image (side, side, 3) uint8, mask (side, side) uint8 of the numbers of KINDS)."""
    rng = np.random.default_rng(number)
    image = rng.normal(110, 40, (side, side, 3))
    mask = np.zeros((side, side), np.uint8)
    y, x = np.mgrid[:side, :side]
    for kind in rng.permutation((1, 2, 3))[: rng.integers(1, 4)]:
        half = rng.uniform(0.12, 0.2) * side
        row, column = rng.uniform(half, side - half, 2)
        dy, dx = abs(y - row), abs(x - column)
        inside = {
            1: dy**2 + dx**2 < half**2,
            2: np.maximum(dy, dx) < 0.85 * half,
            3: (np.minimum(dy, dx) < 0.35 * half) & (np.maximum(dy, dx) < half),
        }[int(kind)]
        image[inside] = rng.normal(rng.uniform(60, 200, 3), 12, (int(inside.sum()), 3))
        mask[inside] = kind
    return np.uint8(image.clip(0, 255)), mask


def save_mask(path: Path, mask: np.ndarray) -> None:
    """A palette PNG, as data sets have them."""
    image = Image.fromarray(mask).convert("P")
    image.putdata(mask.flatten().tolist())
    image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    image.save(path)


def make_shapes(root: Path, count: int, *, first: int = 0, side: int = 64) -> Path:
    """ROOT/images/0000.png, masks and classes.txt; the folder itself."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(first, first + count):
        image, mask = shape(number, side)
        Image.fromarray(image).save(root / "images" / f"{number:04d}.png")
        save_mask(root / "masks" / f"{number:04d}.png", mask)
    (root / "classes.txt").write_text("\n".join(KINDS) + "\n")
    return root
