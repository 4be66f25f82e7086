"""Which files are opened as images, and how large they may be: decided before anything is decoded.

No other decoder of PIL is ever asked, as some of them start programs. No torch: the tools that
write shards use it too.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from poa_ds.system.errors import UserError

LARGEST = 178_956_970  # pixels: half a GiB as RGB; what PIL refuses as well
REDUCED_BYTES = 1 << 30  # that decoding a larger JPEG at a reduced scale may take
SCALES = (8, 4, 2)  # by which a JPEG decoder shrinks at little cost
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of JPEG that begin an image
EMPTY = frozenset((0x00, 0x01, *range(0xD0, 0xD8)))  # those that nothing follows
SCAN, SIDES = 0xDA, struct.Struct(">HH")
TILE_SIZES = (322, 323)  # tags of TIFF: columns and rows of its tiles


class Format(NamedTuple):
    """How a file of this format begins, and what opens it."""

    begins: re.Pattern[bytes]
    factory: type[ImageFile.ImageFile]


FORMATS = {
    "JPEG": Format(re.compile(rb"\xff\xd8"), JpegImageFile),
    "PNG": Format(re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WebP": Format(re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    "GIF": Format(re.compile(rb"GIF8[79]a"), GifImageFile),
    "BMP": Format(re.compile(rb"BM"), BmpImageFile),
    "TIFF": Format(re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    "PPM": Format(re.compile(rb"P[1-6fy]\s"), PpmImageFile),
}
NO_IMAGE = f"not an image ({', '.join(FORMATS)} are read)"
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


class Undecodable(UserError):
    """The bytes are no complete image, or none that is decoded; the message is the cause."""


@contextmanager
def opened(
    content: bytes, *, short_side: int = 0, largest: int = LARGEST
) -> Iterator[ImageFile.ImageFile]:
    """The image, of which only the header was read; Undecodable with the cause.

    short_side: a JPEG of more than `largest` pixels comes reduced to 1/2, 1/4 or 1/8, but with a
    longer short side than this.
    """
    image = factory(content)
    try:
        with image(io.BytesIO(content)) as file:
            if short_side and isinstance(file, JpegImageFile):
                _reduce(file, content, short_side, largest)
            check_size(*file.size, largest)
            if isinstance(file, JpegImageFile) and (frame := jpeg_frame(content)) is not None:
                frame.check_length(len(content))
            if isinstance(file, TiffImageFile):
                check_size(*(int(file.tag_v2.get(tag, 0)) for tag in TILE_SIZES), largest)
            yield file
    except DAMAGE as error:
        raise Undecodable(f"undecodable image: {error}") from error


def check_picture(content: bytes) -> None:
    """Undecodable where it is no image that `opened` opens; its header alone is looked at."""
    with opened(content):
        pass


def check_size(width: int, height: int, largest: int = LARGEST) -> None:
    """Undecodable where an image of this size is not decoded."""
    if width * height > largest:
        raise Undecodable(
            f"too large: {width} x {height} pixels, of {largest} at most (`poa-ds shard` with "
            "--short-side makes large JPEGs smaller)"
        )


def factory(content: bytes) -> type[ImageFile.ImageFile]:
    """What opens an image that begins so. Undecodable: it is none."""
    for begins, opens in FORMATS.values():
        if begins.match(content):
            return opens
    raise Undecodable(NO_IMAGE if content else "empty file")


def _reduce(file: JpegImageFile, content: bytes, short_side: int, largest: int) -> None:
    """Lets a JPEG of too many pixels be decoded at the smallest scale that is allowed."""
    width, height = file.size
    if width * height <= largest:
        return
    scale = next((s for s in SCALES if min(width, height) > s * short_side), 1)
    kept = kept_bytes(content)
    if kept > REDUCED_BYTES:
        raise Undecodable(
            f"too large: a progressive JPEG of {width} x {height} pixels takes {kept / 1e9:.1f} GB "
            f"at any scale, of {REDUCED_BYTES / 1e9:.1f} GB at most"
        )
    file.draft(None, (max(width // scale, 1), max(height // scale, 1)))


def is_jpeg(content: bytes) -> bool:
    """Whether a fast decoder may be given these bytes; Undecodable where they announce too much."""
    if not FORMATS["JPEG"].begins.match(content):
        return False
    frame = jpeg_frame(content)
    if frame is not None:
        check_size(frame.width, frame.height)
        frame.check_length(len(content))
    return frame is not None  # where there is none, PIL says what is wrong


class Frame(NamedTuple):
    """What a JPEG announces."""

    marker: int
    width: int
    height: int

    def check_length(self, length: int) -> None:
        """Undecodable where so many bytes cannot hold the image: decoders would make up the rest.

        A Huffman code has a bit at least, and each block of 64 pixels one, or two that are not in
        scans of their own; half of that, as colours may be taken more coarsely.
        """
        bits = {0xC0: 2, 0xC1: 2, 0xC2: 1}.get(self.marker, 0)
        if length * 8 < bits * self.width * self.height // 128:
            raise Undecodable(
                f"cut short: {length} bytes cannot hold {self.width} x {self.height} pixels"
            )


def jpeg_frame(content: bytes) -> Frame | None:
    """What a JPEG announces; None where its header is damaged."""
    for marker, place in _segments(content):
        if marker in FRAMES:
            height, width = SIDES.unpack_from(content, place + 3)
            return Frame(marker, width, height)
    return None


def kept_bytes(content: bytes) -> int:
    """What decoding a JPEG keeps in memory at any scale: all coefficients, if it has many scans."""
    frame = colours = 0
    for marker, place in _segments(content):
        if marker in FRAMES:
            frame, colours = place, content[place + 7]
            progressive = bool(marker & 2)
        elif marker == SCAN and frame:
            if content[place + 2] == colours and not progressive:
                return 0
            height, width = SIDES.unpack_from(content, frame + 3)
            sampling = [divmod(content[frame + 9 + 3 * n], 16) for n in range(colours)]
            most = max(x for x, _ in sampling) * max(y for _, y in sampling)
            return 2 * width * height * sum(x * y for x, y in sampling) // max(most, 1)
    return 0


def _segments(content: bytes) -> Iterator[tuple[int, int]]:
    """(marker, place of its length) up to the first scan, passed over as libjpeg does it."""
    place, last = 2, len(content) - 12
    while (place := content.find(0xFF, place)) >= 0:
        while place < last and content[place] == 0xFF:
            place += 1
        if place >= last:
            return
        marker, place = content[place], place + 1
        if marker in EMPTY:
            continue
        length = content[place] << 8 | content[place + 1]
        if length < 2 or marker in (0xD8, 0xD9):
            return
        yield marker, place
        if marker == SCAN:
            return
        place += length
