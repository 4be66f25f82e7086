"""What PIL makes of an encoded image. No torch: the tools that write shards use it too."""

import io

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from poa_ds.data.image.opening import Undecodable, opened

SIXTEEN = ("PNG", "PPM")  # formats whose mode I is that of 16 bits


def pixels(content: bytes) -> tuple[np.ndarray, str]:
    """((H, W, 3) uint8 in RGB, format such as JPEG). The EXIF orientation is not applied."""
    with opened(content) as image:
        return rgb(image), str(image.format)


def rgb(image: ImageFile) -> np.ndarray:
    """(H, W, 3) uint8 of an opened image; of several pages the first."""
    # PIL would cut off all above 255
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN):
        grey = np.array(image) >> 8
        return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2)
    if image.mode in ("I", "F"):
        raise Undecodable(f"nothing says which numbers are white (mode {image.mode})")
    return np.array(image.convert("RGB"))


def png(image: np.ndarray) -> bytes:
    """The (H, W, 3) uint8 image as a PNG file, without loss."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
