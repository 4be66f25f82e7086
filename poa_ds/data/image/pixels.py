"""What PIL makes of an encoded image. No torch: the tools that write shards use it too."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from poa_ds.system.errors import UserError

# what PIL raises on files that are cut, altered or no images at all
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    RuntimeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
SIXTEEN = ("PNG", "PPM")  # formats whose mode I is that of 16 bits


class Undecodable(UserError):
    """The bytes are no complete image; the message is the cause."""


def pixels(content: bytes) -> tuple[np.ndarray, str]:
    """((H, W, 3) uint8 in RGB, format such as JPEG). The EXIF orientation is not applied."""
    if not content:
        raise Undecodable("empty file")
    try:
        with Image.open(io.BytesIO(content)) as image:
            # PIL would cut off all above 255
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN):
                grey = np.array(image) >> 8
                return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2), str(image.format)
            if image.mode in ("I", "F"):
                raise Undecodable(f"nothing says which numbers are white (mode {image.mode})")
            return np.array(image.convert("RGB")), str(image.format)
    except Image.UnidentifiedImageError:
        raise Undecodable("not an image") from None
    except DAMAGE as error:
        raise Undecodable(f"undecodable image: {error}") from error


def png(image: np.ndarray) -> bytes:
    """The (H, W, 3) uint8 image as a PNG file, without loss."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
