"""Files that are no ordinary photographs: bombs, stacks, and what only other programs should open.

Everything is made by PIL and, where a header must lie, patched by hand.
"""

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.support.shards import image

PHOTO = Image.fromarray(image(1))


def encoded(photo: Image.Image, kind: str, **options: object) -> bytes:
    """The photograph as a file of this format."""
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return file.getvalue()


def jpeg_of(width: int, height: int, **options: object) -> bytes:
    """A small JPEG that announces another size; decoders fill in what does not come."""
    content = bytearray(encoded(PHOTO, "JPEG", **options))
    marker = b"\xff\xc2" if options.get("progressive") else b"\xff\xc0"
    place = content.index(marker) + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def png_of(width: int, height: int) -> bytes:
    """A small PNG that announces another size, with the right checksum."""
    content = bytearray(encoded(PHOTO, "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def webp_of(width: int, height: int) -> bytes:
    """A small WebP whose canvas announces another size."""
    content = bytearray(encoded(PHOTO.convert("RGBA"), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"))
    assert content[12:16] == b"VP8X"
    content[24:27] = (width - 1).to_bytes(3, "little")
    content[27:30] = (height - 1).to_bytes(3, "little")
    return bytes(content)


def tiff_of(width: int, height: int) -> bytes:
    """A TIFF that announces another size."""
    content = bytearray(encoded(PHOTO, "TIFF"))
    begin = struct.unpack_from("<I", content, 4)[0] + 2
    for entry in range(begin, begin + 24, 12):
        tag = struct.unpack_from("<H", content, entry)[0]
        struct.pack_into("<HIL", content, entry + 2, 4, 1, {256: width, 257: height}[tag])
    return bytes(content)


BOMBS: dict[str, Callable[[int, int], bytes]] = {
    "JPEG": jpeg_of,
    "progressive JPEG": lambda width, height: jpeg_of(width, height, progressive=True),
    "PNG": png_of,
    "WebP": webp_of,
    "GIF": lambda width, height: _patched("GIF", 6, "<HH", width, height),
    "BMP": lambda width, height: _patched("BMP", 18, "<II", width, height),
    "TIFF": tiff_of,
    "PPM": lambda width, height: b"P6 %d %d 255\n" % (width, height),
}


def _patched(kind: str, place: int, form: str, *values: int) -> bytes:
    content = bytearray(encoded(PHOTO, kind))
    struct.pack_into(form, content, place, *values)
    return bytes(content)


def stack(kind: str, pages: int) -> bytes:
    """Several pages in one file."""
    others = [Image.fromarray(image(n)) for n in range(2, pages + 1)]
    return encoded(PHOTO, kind, save_all=True, append_images=others)


# each begins another program, or a decoder that the documents do not name
FOREIGN: dict[str, Callable[[], bytes]] = {
    "EPS": lambda: encoded(PHOTO, "EPS"),
    "PDF": lambda: encoded(PHOTO, "PDF"),
    "ICO": lambda: encoded(PHOTO, "ICO"),
    "TGA": lambda: encoded(PHOTO, "TGA"),
    "DDS": lambda: encoded(PHOTO, "DDS"),
    "PCX": lambda: encoded(PHOTO, "PCX"),
    "SGI": lambda: encoded(PHOTO, "SGI"),
    "SPIDER": lambda: encoded(PHOTO.convert("F"), "SPIDER"),
    "JPEG 2000": lambda: encoded(PHOTO, "JPEG2000"),
    "WMF": lambda: b"\xd7\xcd\xc6\x9a" + bytes(100),
    "a script": lambda: b"#!/bin/sh\n",
}


def tiled_tiff(side: int, tile: int) -> bytes:
    """A grey TIFF of side x side pixels in one tile of tile x tile; as deflate packs zeros."""
    packed = zlib.compress(bytes(min(tile * tile, 1 << 24)), 9)
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile}
    tags |= {324: 8, 325: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(packed))
    return head + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
