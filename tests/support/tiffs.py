"""Images of five channels of 16 bits, as TIFF files."""

from pathlib import Path

import numpy as np
import tifffile

CHANNELS = 5
WHITE = 4095  # of a sensor of 12 bits


def numbers(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    """(CHANNELS, height, width) uint16 up to WHITE: waves, another one in each channel."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 8
    waves = [np.sin(a * y + b * x + c) for a, b, c in draw.uniform(-2, 2, (CHANNELS, 3))]
    noise = draw.uniform(-0.2, 0.2, (CHANNELS, height, width))
    return ((np.clip(np.stack(waves) + noise, -1, 1) + 1) / 2 * WHITE).astype(np.uint16)


def write(path: Path, image: np.ndarray, **options: object) -> Path:
    """The image as a file; channels are planes unless `options` say otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    usual = {"photometric": "minisblack", "planarconfig": "separate"}
    tifffile.imwrite(path, image, **(usual | options))
    return path


def tree(root: Path, count: int = 12) -> Path:
    """A folder of `count` such images in two classes."""
    for number in range(count):
        write(root / ("ant", "bee")[number % 2] / f"{number:02d}.tif", numbers(number))
    return root
