"""What PIL makes of an encoded image. No torch: the tools that write shards use it too."""

import io

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from poa_ds.data.image.opening import Undecodable, opened

ORIENTATION = 274  # of the tags of EXIF
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


def pages(image: ImageFile) -> int:
    """How many images the file holds; the further ones of a camera's JPEG are none of its pages."""
    return getattr(image, "n_frames", 1)


def losses(image: ImageFile, *, all_pages: bool = False) -> tuple[str, ...]:
    """What `rgb` leaves out of an opened image; what differs within a kind stands behind a colon.

    all_pages: each page is read, so none is lost.
    """
    further = pages(image) - 1
    colours = image.mode if image.mode in ("CMYK", "LAB", "HSV") else ""
    found = {
        f"further pages are left out: {further}": further and not all_pages,
        "further images of a camera are left out": "mp" in image.info,
        "transparency is left out": image.mode[-1] in "aA" or "transparency" in image.info,
        "16 bits of a colour become 8": has_sixteen_bits(image),
        f"{colours} becomes RGB without a profile": colours,
        "the colour profile is not applied": _has_profile(image) and not colours,
        "the EXIF orientation is not applied": image.getexif().get(ORIENTATION, 1) != 1,
    }
    return tuple(text for text, lost in found.items() if lost)


def has_sixteen_bits(image: ImageFile) -> bool:
    """Whether a colour has more than the 8 bits that `rgb` keeps."""
    if image.format == "PPM":
        return any(isinstance(x, int) and x > 255 for tile in image.tile for x in tile[3])
    raw = (str(tile[3]) for tile in image.tile)
    return image.mode.startswith("I") or any(";16" in text for text in raw)


def _has_profile(image: ImageFile) -> bool:
    """Whether there is a colour profile other than the one that everybody assumes."""
    profile = image.info.get("icc_profile") or b""
    return bool(profile) and b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile


def png(image: np.ndarray) -> bytes:
    """The (H, W, 3) uint8 image as a PNG file, without loss."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
