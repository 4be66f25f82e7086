"""Which library decodes the JPEGs that training crops, and at which resolution.

torchvision: the default. simplejpeg: the same pixels, a little faster. simplejpeg_scaled: large
images at 1/2, 1/4 or 1/8 where no crop can be enlarged by it: other pixels, half the work.
"""

import functools
import importlib.util
import math
from collections.abc import Callable

import torch
from torch import Tensor

from poa_ds.data.image.opening import SCALES, is_jpeg
from poa_ds.data.image.values import Values
from poa_ds.data.image.views import ASPECT, CropSpec, decode
from poa_ds.system.errors import UsageError

# encoded -> (3, H, W) uint8, of measurements (C, H, W) float32 from 0 to 255, or Undecodable
Decode = Callable[[bytes], Tensor]
NAMES = ("torchvision", "simplejpeg", "simplejpeg_scaled")
SPACES = ("YCbCr", "Gray", "RGB")  # it turns CMYK into other colours than torchvision


def installed() -> tuple[str, ...]:
    """The decoders that this machine has."""
    return NAMES if importlib.util.find_spec("simplejpeg") else NAMES[:1]


def check_decoder(name: str) -> None:
    """UsageError where the package of a recipe's decoder is missing."""
    assert name in NAMES, name
    if name not in installed():
        raise UsageError(
            f"data.decoder {name} needs the package simplejpeg: pip install simplejpeg "
            f"(or data.decoder={NAMES[0]})"
        )


def decoder(name: str, crops: CropSpec, values: Values | None = None) -> Decode:
    """The decoder of a recipe, which `check_decoder` has passed."""
    check_decoder(name)
    if values is not None:
        return of(values)
    if name == "torchvision":
        return decode
    return functools.partial(_decode, crops=crops if name == "simplejpeg_scaled" else None)


def of(values: Values | None) -> Decode:
    """The decoder of an evaluation: of ordinary images, or of measurements."""
    return decode if values is None else functools.partial(_measured, values)


def _measured(values: Values, content: bytes) -> Tensor:
    return torch.from_numpy(values.read(content))


def reduction(height: int, width: int, crops: CropSpec) -> int:
    """1, 2, 4 or 8: the most by which an image may shrink so that no crop of it is enlarged."""
    kinds = [(crops.global_size, crops.global_scale[0])]
    if crops.local_count:
        kinds.append((crops.local_size, crops.local_scale[0]))
    for scale in SCALES:
        if all(
            # the shorter side of the smallest box; boxes of odd images are as wide as the image
            min(math.sqrt(share * ASPECT[0] * height * width), height, width) >= scale * size
            for size, share in kinds
        ):
            return scale
    return 1


def _decode(content: bytes, crops: CropSpec | None) -> Tensor:
    """By simplejpeg; what it refuses (damage, rare kinds, no JPEG) goes the usual way."""
    if not is_jpeg(content):
        return decode(content)
    import simplejpeg

    size: dict[str, int] = {}
    try:
        height, width, space, *_ = simplejpeg.decode_jpeg_header(content)
        if space not in SPACES:
            return decode(content)
        if crops is not None:
            scale = reduction(height, width, crops)
            low, narrow = -(-height // scale), -(-width // scale)
            size = {"min_height": low, "min_width": narrow, "min_factor": scale}
        image = simplejpeg.decode_jpeg(content, "RGB", **size)
    except ValueError:
        return decode(content)
    return torch.from_numpy(image).permute(2, 0, 1)
