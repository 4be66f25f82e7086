"""What is to be written: samples, where their bytes lie, and reading them."""

import functools
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poa_ds.data.image.opening import Undecodable
from poa_ds.data.store import tree
from poa_ds.data.store.scan import LARGEST_IMAGE


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
class Altered:
    """A file of which something is lost in the shards or when they are read, and what."""

    file: str
    change: str


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
    if isinstance(content, Path):
        return tree.read(content)
    _check_size(content.size)
    try:
        found = os.pread(_descriptor(content.archive), content.size, content.offset)
    except OSError as error:
        raise Undecodable(f"unreadable file: {error.strerror}") from error
    if len(found) < content.size:
        raise Undecodable("the archive ends inside it")
    return found


def _check_size(size: int) -> None:
    if size > LARGEST_IMAGE:
        raise Undecodable(f"too large: more than {LARGEST_IMAGE} bytes")


@functools.lru_cache(maxsize=4)
def _descriptor(archive: str) -> int:
    return os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
