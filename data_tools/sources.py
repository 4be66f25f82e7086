"""What is to be written: samples and where their bytes lie, and how they become usable members."""

import functools
import io
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from poa_ds.data.image.opening import Undecodable, opened
from poa_ds.data.image.pixels import png, rgb

EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}
LARGEST = 0x7FFFF000  # bytes that Linux hands over in one read; the index has 31 bits for a size


@dataclass(frozen=True, slots=True)
class TarSlice:
    """The bytes of a member of an archive that stays packed."""

    archive: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to be written."""

    name: str  # becomes the key
    origin: str  # names the image in rejected.jsonl
    content: bytes | Path | TarSlice
    label: int = -1
    note: dict[str, Any] | None = None  # becomes the member KEY.json


@dataclass(frozen=True)
class Rejected:
    """A file that is not in the shards, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Recode:
    """Images with a longer short side become JPEGs with that one; 0: none."""

    short_side: int = 0
    quality: int = 92


def fingerprint(sample: Sample) -> str:
    """What a plan remembers of a sample: enough to tell that the input changed."""
    content = sample.content
    if isinstance(content, bytes):
        size = f"{len(content)} {zlib.crc32(content)}"
    elif isinstance(content, TarSlice):
        size = f"{content.offset} {content.size}"
    else:
        size = _size(content)
    return f"{sample.name}\0{sample.origin}\0{sample.label}\0{size}\n"


def _size(path: Path) -> str:
    try:
        return str(path.stat().st_size)
    except (OSError, ValueError):  # read() says what is wrong with it
        return "absent"


def read(sample: Sample) -> bytes:
    """The encoded image; Undecodable where there is nothing to read."""
    content = sample.content
    if isinstance(content, bytes):
        return content
    try:
        if isinstance(content, TarSlice):
            _check_size(content.size)
            found = os.pread(_descriptor(content.archive), content.size, content.offset)
            if len(found) < content.size:
                raise Undecodable("the archive ends inside it")
            return found
        status = content.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Undecodable("not a regular file")  # reading a pipe would wait for ever
        _check_size(status.st_size)
        return content.read_bytes()
    except OSError as error:
        raise Undecodable(f"unreadable file: {error.strerror}") from error
    except ValueError as error:  # a name with a zero byte
        raise Undecodable(f"unreadable file: {error}") from error


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise Undecodable(f"too large: more than {LARGEST} bytes")


@functools.lru_cache(maxsize=4)
def _descriptor(archive: str) -> int:
    return os.open(archive, os.O_RDONLY | os.O_CLOEXEC)


def usable(content: bytes, recode: Recode) -> tuple[str, bytes]:
    """(extension, content) of a member: JPEG and PNG as they are, other formats become PNG."""
    with opened(content, short_side=recode.short_side) as file:
        image, kind = rgb(file), str(file.format)
    if recode.short_side and min(image.shape[:2]) > recode.short_side:
        return "jpg", _smaller(Image.fromarray(image), recode)
    extension = EXTENSIONS.get(kind)
    return (extension, content) if extension else ("png", png(image))


def _smaller(image: Image.Image, recode: Recode) -> bytes:
    scale = recode.short_side / min(image.size)
    size = tuple(max(recode.short_side, round(side * scale)) for side in image.size)
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=recode.quality)
    return file.getvalue()
