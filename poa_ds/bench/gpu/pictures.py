"""python -m poa_ds.bench.gpu.pictures FOLDER: images to train on where there are no photographs.

Waves in colours; a class is a direction and a length of its waves. FOLDER/train and FOLDER/val have
a folder of each class.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poa_ds.data.image.pixels import png

SIDE, DIRECTIONS, LENGTHS = 32, 5, (5.0, 9.0, 16.0)  # pixels; 15 classes
IMAGES = {"train": 100, "val": 25}  # of a class
NOISE = 30.0  # of 255


def picture(direction: int, length: float, rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: the class decides the waves, rng their place, colours and noise."""
    y, x = np.mgrid[:SIDE, :SIDE]
    turn = np.pi * direction / DIRECTIONS
    along = np.cos(turn) * x + np.sin(turn) * y
    wave = np.sin(2 * np.pi * along / length + rng.uniform(0, 2 * np.pi))
    colours = rng.uniform(-90, 90, 3)
    noise = rng.normal(0, NOISE, (SIDE, SIDE, 3))
    return np.clip(127 + wave[..., None] * colours + noise, 0, 255).astype(np.uint8)


def main(arguments: Sequence[str]) -> int:
    [folder] = map(Path, arguments)
    rng = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for number, length in enumerate(LENGTHS):
            for direction in range(DIRECTIONS):
                place = folder / split / f"length{number}_direction{direction}"
                place.mkdir(parents=True)
                for image in range(count):
                    content = png(picture(direction, length, rng))
                    (place / f"{image:03d}.png").write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
