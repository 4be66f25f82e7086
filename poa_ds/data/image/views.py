"""Decoding and cropping on the CPU, in the images' own type: what the workers do for each image.

Colour changes and blur wait until the crops are on the device (photometric.py): there they are
five sixths of the work of the usual pipeline.
"""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from poa_ds.data.image.opening import is_jpeg
from poa_ds.data.image.pixels import pixels

ASPECT = (3 / 4, 4 / 3)  # of a random crop; torchvision's default, which DINO and POA keep
ATTEMPTS = 10
LONGEST = 16  # length of an image in its short sides, beyond which an evaluation cuts its ends off


@dataclass(frozen=True)
class CropSpec:
    """Sizes in pixels; scale: the range of the share of the image's area; flip: a probability."""

    global_size: int
    global_scale: tuple[float, float]
    local_count: int
    local_size: int
    local_scale: tuple[float, float]
    flip: float


@dataclass(frozen=True)
class Views:
    """The crops of one image."""

    global_crops: Tensor  # (2, 3, S, S) uint8; one, float and normalised, to learn labels from
    local_crops: Tensor  # (L, 3, s, s) uint8


def decode(content: bytes) -> Tensor:
    """(3, H, W) uint8 in RGB, or Undecodable with the cause; EXIF orientation is not applied.

    PNGs are left to PIL: one flipped bit in them, and torchvision's decode_png ends the process.
    """
    if is_jpeg(content):
        try:
            encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_jpeg(encoded, ImageReadMode.RGB)
        except RuntimeError:  # a rare kind (CMYK with odd markers) or damage
            pass  # PIL reads it or says why
    return torch.from_numpy(pixels(content)[0]).permute(2, 0, 1)


def views(image: Tensor, crops: CropSpec, rng: random.Random) -> Views:
    """Two global and L local random crops of a (C, H, W) image, each flipped at random."""
    whole = [
        random_crop(image, crops.global_size, crops.global_scale, crops.flip, rng) for _ in range(2)
    ]
    part = [
        random_crop(image, crops.local_size, crops.local_scale, crops.flip, rng)
        for _ in range(crops.local_count)
    ]
    none = image.new_empty(0, len(image), crops.local_size, crops.local_size)
    return Views(torch.stack(whole), torch.stack(part) if part else none)


def random_crop(
    image: Tensor, size: int, scale: tuple[float, float], flip: float, rng: random.Random
) -> Tensor:
    """(C, size, size): a random box of the image, flipped with that probability."""
    top, left, height, width = random_box(image.shape[-2], image.shape[-1], scale, rng)
    box = image[None, :, top : top + height, left : left + width]
    # colours innermost: torch's fast path for bytes; a quarter faster than resized_crop, same bits
    box = box.contiguous(memory_format=torch.channels_last)
    crop = _in_range(interpolate(box, (size, size), mode="bicubic", antialias=True)[0])
    return crop.flip(-1) if rng.random() < flip else crop


def random_box(
    height: int, width: int, scale: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """(top, left, height, width) as torchvision's RandomResizedCrop draws it."""
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for _ in range(ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1))
            return top, left, h, w
    # an image too long or too thin: the largest box of the nearest allowed shape, in the middle
    h = min(height, round(width / ASPECT[0])) if width < height * ASPECT[0] else height
    w = min(width, round(height * ASPECT[1])) if width > height * ASPECT[1] else width
    return (height - h) // 2, (width - w) // 2, max(h, 1), max(w, 1)


def center_view(image: Tensor, resize: int, crop: int) -> Tensor:
    """(C, crop, crop): short side to `resize` (bicubic), then the middle."""
    image = _middle(image, LONGEST + math.ceil(crop / resize))
    image = F.resize(image, [resize], InterpolationMode.BICUBIC, antialias=True)
    return F.center_crop(_in_range(image), [crop, crop])


def _in_range(image: Tensor) -> Tensor:
    """What bicubic sums leave above 255 or below 0 cut off, as bytes have it already."""
    return image.clamp_(0, 255) if image.is_floating_point() else image


def covering_view(image: Tensor, rows: int, columns: int) -> Tensor:
    """(C, rows, columns): as small as covers these sides (bicubic), then the middle."""
    image = _middle(image, LONGEST + math.ceil(max(rows, columns) / min(rows, columns)))
    height, width = image.shape[-2:]
    if rows * width >= columns * height:
        sides = [rows, rows * width // height]
    else:
        sides = [columns * height // width, columns]
    image = F.resize(image, sides, InterpolationMode.BICUBIC, antialias=True)
    return F.center_crop(_in_range(image), [rows, columns])


def _middle(image: Tensor, longest: int) -> Tensor:
    """The image without the ends that no central crop reaches: a long one would be enlarged whole.

    At most `longest` times as long as short, and in the middle to the pixel.
    """
    height, width = image.shape[-2:]
    short = min(height, width)
    rows, columns = (min(side, longest * short + (side - short) % 2) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[..., top : top + rows, left : left + columns]
