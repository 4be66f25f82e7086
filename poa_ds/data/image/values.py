"""Images that are measurements: any number of channels, 8 or 16 bits, floating point, pages.

A range, or percentiles of each image, say which numbers become 0 and 255: behind it everything
works on (C, H, W) float32 as it does on the bytes of ordinary images. No torch.
"""

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from poa_ds.data.image.opening import DAMAGE, FORMATS, LARGEST, Undecodable, check_size, opened
from poa_ds.data.image.pixels import SIXTEEN, has_sixteen_bits
from poa_ds.model.options import COLOURS
from poa_ds.system.errors import UserError

if TYPE_CHECKING:
    from poa_ds.recipe.tree import Data

PLAIN = {"L": 1, "RGB": 3, "RGBA": 4, "LA": 2}  # modes of PIL that are channels of 8 bits
ENDINGS = {"JPEG": "jpg", "PNG": "png", "WebP": "webp", "WEBP": "webp"}  # beside tif
WHITE = 255.0


@dataclass(frozen=True)
class Values:
    """What a recipe says about its images' numbers.

    range: (low, high), or () for those of 8 bits. percentiles: (low, high) of each channel of each
    image in the range's place, or (). pages: what those of a file are.
    """

    channels: int
    range: tuple[float, ...] = ()
    percentiles: tuple[float, ...] = ()
    pages: Literal["first", "channels"] = "first"

    @classmethod
    def of(cls, data: "Data") -> Self | None:
        """None: ordinary images, of three colours of 8 bits."""
        if not data.is_measured:
            return None
        return cls(data.channels, tuple(data.range), tuple(data.percentiles), data.pages)

    def read(self, content: bytes) -> np.ndarray:
        """(channels, H, W) float32 from 0 to 255. Undecodable: damaged, or not such an image."""
        numbers = raw(content, self.pages)
        if len(numbers) != self.channels:
            raise Undecodable(f"{len(numbers)} channels, data.channels is {self.channels}")
        if not np.isfinite(numbers).all():
            raise Undecodable("it has numbers that are not finite")
        low, high = self._ends(numbers)
        span = np.where(high > low, high - low, 1.0)
        return np.clip((numbers - low) * (WHITE / span), 0, WHITE).astype(np.float32)

    def _ends(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(channels, 1, 1) float64 each: the numbers that become 0 and 255."""
        if self.percentiles:
            ends = np.percentile(numbers, self.percentiles, axis=(1, 2), keepdims=True)
            return ends[0], ends[1]
        if not self.range and numbers.dtype != np.uint8:
            raise Undecodable(
                f"{numbers.dtype} numbers, and nothing says which are black and white: give "
                "data.range=[LOW, HIGH] (`poa-ds stats` measures) or data.percentiles=[1, 99]"
            )
        low, high = self.range or (0.0, WHITE)
        whole = np.ones((self.channels, 1, 1))
        return low * whole, high * whole


def raw(content: bytes, pages: str) -> np.ndarray:
    """(C, H, W) as the file has them: integers, or floating point. Undecodable with the cause."""
    if is_tiff(content):
        return _tiff(content, pages)
    with opened(content) as image:
        if image.mode in PLAIN and not has_sixteen_bits(image):
            return np.moveaxis(np.atleast_3d(np.array(image)), -1, 0)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN):
            return np.array(image).astype(np.uint16)[None]
        bits = " of 16 bits" if has_sixteen_bits(image) else ""
        raise Undecodable(
            f"{image.format} of mode {image.mode}{bits} is not read as numbers: TIFF would be"
        )


def check_header(content: bytes) -> None:
    """Undecodable where it is no image of numbers; its pixels are not looked at."""
    header_format(content)


def header_format(content: bytes) -> str:
    """What the name of such a file ends in in shards, after the same check; empty: none stays."""
    if not is_tiff(content):
        with opened(content) as image:
            return ENDINGS.get(str(image.format), "")
    with _opened_tiff(content) as file:
        _check_page(file.pages.first)
    return "tif"


def as_they_are(content: bytes, *, every_page: bool = False) -> Iterator[tuple[str, bytes]]:
    """(what its name ends in, file) of an image of numbers.

    every_page: a TIFF of each page of a stack, of the same numbers.
    """
    ending = header_format(content)
    if not ending:
        kept = ", ".join(dict.fromkeys((*ENDINGS.values(), "tif")))
        raise Undecodable(f"shards hold such a file as a PNG alone; as they are {kept} stay")
    if not every_page or ending != "tif":
        yield ending, content
        return
    import tifffile

    with _opened_tiff(content) as file:
        if len(file.pages) == 1:
            yield ending, content
            return
        for page in file.pages:
            _check_page(page)
            out, planes = io.BytesIO(), "separate" if page.axes == "SYX" else "contig"
            kind = {} if page.axes == "YX" else {"planarconfig": planes}
            tifffile.imwrite(out, page.asarray(), photometric="minisblack", metadata=None, **kind)
            yield ending, out.getvalue()


def check_pages(content: bytes) -> None:
    """Undecodable where a page of a TIFF is damaged; they may differ in size."""
    with _opened_tiff(content) as file:
        for page in file.pages:
            _page(page)


def is_tiff(content: bytes) -> bool:
    """Whether the file begins as a TIFF does."""
    return FORMATS["TIFF"].begins.match(content) is not None


@contextmanager
def _opened_tiff(content: bytes) -> Iterator[Any]:
    """A tifffile.TiffFile; Undecodable with the cause, UserError where the package is missing."""
    if importlib.util.find_spec("tifffile") is None:
        raise UserError("TIFF as numbers needs the package tifffile: pip install 'poa_ds[tiff]'")
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            yield file
    except (*DAMAGE, tifffile.TiffFileError) as error:
        raise Undecodable(f"undecodable TIFF: {error}") from error


def _tiff(content: bytes, pages: str) -> np.ndarray:
    with _opened_tiff(content) as file:
        if pages == "first":
            return _page(file.pages.first)
        found = [_page(page) for page in file.pages]
    if len({page.shape for page in found}) > 1:
        raise Undecodable("its pages, which are channels, differ in size")
    return np.concatenate(found)


def _page(page: Any) -> np.ndarray:
    """(C, H, W) of a page of tifffile's."""
    _check_page(page)
    numbers = page.asarray()
    if page.axes == "YX":
        return numbers[None]
    return numbers if page.axes == "SYX" else np.moveaxis(numbers, -1, 0)


def _check_page(page: Any) -> None:
    if page.axes not in ("YX", "YXS", "SYX"):
        raise Undecodable(f"a page of axes {page.axes} is no image")
    if page.dtype is None or page.dtype.kind not in "uif":
        raise Undecodable(f"a page of {page.dtype} is not read")
    meaning = getattr(page.photometric, "name", "")
    if meaning in ("PALETTE", "MINISWHITE"):
        raise Undecodable(f"a page of photometric {meaning} is not read as numbers")
    check_size(page.imagewidth, page.imagelength)
    check_size(page.imagewidth * page.samplesperpixel, page.imagelength, COLOURS * LARGEST)
