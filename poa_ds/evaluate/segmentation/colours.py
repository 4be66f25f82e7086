"""Colours of crops changed at random, as mmsegmentation's PhotoMetricDistortion does.

Each of four changes is made to half of the crops; results are cut to 0 .. 255, fractions are
dropped. Contrast comes before or behind saturation and hue. Hue is in 256 steps here, in 180 there.
"""

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION = 32, (0.5, 1.5), (0.5, 1.5)
HUE = 18 / 180  # of the circle, to both sides
HALF = 0.5


def distorted(image: Tensor, rng: random.Random) -> Tensor:
    """The image (3, H, W) uint8 in other colours."""
    pixels = image.permute(1, 2, 0).numpy()
    if rng.random() < HALF:
        pixels = linear(pixels, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast = rng.uniform(*CONTRAST) if rng.random() < HALF else None
    last = rng.random() < HALF
    if contrast is not None and not last:
        pixels = linear(pixels, contrast, 0.0)
    if rng.random() < HALF:
        pixels = turned(pixels, saturation=rng.uniform(*SATURATION))
    if rng.random() < HALF:
        pixels = turned(pixels, hue=rng.uniform(-HUE, HUE))
    if contrast is not None and last:
        pixels = linear(pixels, contrast, 0.0)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def linear(pixels: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """uint8 values times the factor, plus the shift."""
    return np.uint8((pixels * np.float32(factor) + np.float32(shift)).clip(0, 255))


def turned(pixels: np.ndarray, *, saturation: float = 1.0, hue: float = 0.0) -> np.ndarray:
    """RGB (H, W, 3) uint8 with another saturation, and hues turned by a part of the circle."""
    hsv = np.array(Image.fromarray(pixels).convert("HSV"))
    hsv[..., 1] = linear(hsv[..., 1], saturation, 0.0)
    hsv[..., 0] += np.uint8(round(256 * hue) % 256)  # modulo 256
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
