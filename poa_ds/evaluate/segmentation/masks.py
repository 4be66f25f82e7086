"""What stands in the files of masks: a number for each pixel, read without colours in between."""

import numpy as np
from PIL.ImageFile import ImageFile

from poa_ds.data.image.opening import opened
from poa_ds.system.errors import UserError

IGNORED = -1  # a pixel that is neither learnt from nor measured
MOST = 4096  # classes; a mask with more numbers is of another kind, such as instances
GREY = ("1", "L", "P", "I", "I;16")  # modes of palette and grey PNGs
WIDENED = {"L;2": 85, "L;4": 17}  # PIL spreads what has few bits over 0 .. 255


def numbers(content: bytes) -> np.ndarray:
    """(H, W) int32 of an encoded mask.

    Undecodable: it is damaged. UserError: it is no PNG with a number for each pixel.
    """
    with opened(content) as image:
        if image.format != "PNG" or image.mode not in GREY:
            raise UserError(f"a palette or grey PNG is needed, this is {image.format} {image.mode}")
        factor = WIDENED.get(_kind(image), 1)
        return np.array(image).astype(np.int32) // factor


def _kind(image: ImageFile) -> str:
    """How the pixels lie in the file, where PIL says it."""
    return str(image.tile[0][3]) if image.tile else ""


def classes(found: np.ndarray, *, first: int, ignore: int) -> np.ndarray:
    """(H, W) int16: the class of each pixel, or IGNORED. first: the number of class 0."""
    return np.where(found == ignore, IGNORED, found - first).astype(np.int16)
