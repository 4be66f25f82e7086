"""Small shard folders for tests, written by the product's own writer."""

import argparse
from pathlib import Path

import numpy as np

from data_tools.shard import Sample, write
from poa_ds.data.index import ShardFolder
from poa_ds.data.pixels import png

CLASSES = ("ant", "bee", "cat")


def image(number: int, height: int = 40, width: int = 36) -> np.ndarray:
    """(height, width, 3) uint8, smooth and different for every number."""
    y, x = np.mgrid[:height, :width] / 8
    waves = [np.sin(x * (1 + c) + number) + np.cos(y + number * (c + 1)) for c in range(3)]
    return np.uint8(127 + 60 * np.stack(waves, -1))


def options(**changed: object) -> argparse.Namespace:
    """The options that all shard commands share."""
    return argparse.Namespace(
        **{"seed": 0, "images_per_shard": 8, "bytes_per_shard": 10**9} | changed
    )


def make_shards(folder: Path, count: int = 30, **changed: object) -> ShardFolder:
    """Shards of `count` PNG images, keyed image_000, ..., of class number % 3."""
    samples = [
        Sample(f"image_{number:03d}", f"image {number}", png(image(number)), number % len(CLASSES))
        for number in range(count)
    ]
    args = options(**changed)
    write(folder, samples, classes=CLASSES, rejected=(), args=args, source="waves")
    return ShardFolder.open(folder)
