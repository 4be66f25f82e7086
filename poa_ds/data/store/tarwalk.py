"""Walking through uncompressed tars strictly: a damaged or cut archive is an error, never its end.

tarfile and WebDataset take a damaged header for the end of the archive and lose the rest without a
word. Names may be plain, PAX or GNU long names, as the usual tools write them.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from poa_ds.system.errors import UserError

ROW = np.dtype([("offset", "<i8"), ("size", "<i4"), ("crc32", "<u4"), ("label", "<i4")])
BLOCK = 512  # bytes, of a tar header; data is padded to it
PIECE = 1 << 20  # bytes read at a time behind the end
IMAGES = ("jpg", "jpeg", "png", "webp")
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
PAX, PAX_GLOBAL, LONG_NAME = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME


@dataclass(frozen=True)
class Scan:
    """What one tar holds: its rows, and the keys of samples without an image."""

    rows: np.ndarray  # (n,) of ROW
    without_image: tuple[str, ...]


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) as WebDataset cuts a member's name: at the first dot of its last part."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def tar_entries(
    file: BinaryIO, name: str, start: int = 0, length: int | None = None
) -> Iterator[tuple[str, int, int]]:
    """(member, offset of its content, size) of each regular file of the tar that begins at `start`.

    length: of a tar that lies inside another one.

    `name` is what errors call it. The file's position is that of the content at every item; the
    taker may read it. Content that is not read is not looked at.
    """
    position, extended, anything = start, {}, False
    end = None if length is None else start + length
    while True:
        file.seek(position)
        header = file.read(BLOCK if end is None else max(0, min(BLOCK, end - position)))
        if len(header) < BLOCK:
            raise UserError(f"{name}: cut short, it ends at byte {position} without an end mark")
        if not any(header):
            break
        member = _member(header, f"{name}: damaged tar header at byte {position}")
        size = extended.get("size", member.size)
        if member.type in (PAX, PAX_GLOBAL, LONG_NAME):
            content = file.read(size)
            if member.type != PAX_GLOBAL:
                extended |= _extended(member.type, content, f"{name}: at byte {position}")
        elif member.type in REGULAR:
            yield extended.get("path", member.name), position + BLOCK, size
            extended = {}
        elif member.type != tarfile.DIRTYPE:
            raise UserError(f"{name}: {member.name}: only plain files in USTAR format are read")
        position += BLOCK + size + -size % BLOCK
        anything = True
    if not _blank(file, None if end is None else end - position - BLOCK):
        raise UserError(f"{name}: something follows the end mark at byte {position}")
    if not anything and length is not None:
        raise UserError(f"{name}: an empty archive at byte {position}")


def _blank(file: BinaryIO, length: int | None) -> bool:
    """Whether there are only zeros in the rest of the file, or in so many bytes of it."""
    left = length
    while part := file.read(PIECE if left is None else min(PIECE, left)):
        if any(part):
            return False
        left = None if left is None else left - len(part)
    return True


def tar_members(file: BinaryIO, name: str) -> Iterator[tuple[str, int, bytes]]:
    """(member, offset of its content, content) of each regular file."""
    for member, offset, size in tar_entries(file, name):
        padded = size + -size % BLOCK
        content = file.read(padded)
        if len(content) < padded:
            raise UserError(f"{name}: cut short inside {member} at byte {offset - BLOCK}")
        yield member, offset, content[:size]


def _member(header: bytes, problem: str) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise UserError(f"{problem}: {error}") from error


def _extended(kind: bytes, content: bytes, place: str) -> dict:
    """The path and the size that an extended header gives to the next member."""
    if kind == LONG_NAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found = {}
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(content):
            raise UserError(f"{place}: damaged PAX header")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            found["path"] = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not value.isdigit():
                raise UserError(f"{place}: damaged PAX header")
            found["size"] = int(value)
        content = content[int(length) :]
    return found


def scan_tar(path: Path) -> Scan:
    """The samples of a tar, read from it alone; UserError names what is wrong with it."""
    rows: dict[str, list[int]] = {}
    last = None
    with open(path, "rb") as file:
        for name, offset, content in tar_members(file, str(path)):
            key, extension = split_name(name)
            if key != last and key in rows:
                raise UserError(f"{path}: the members of {key} do not stand together")
            last = key
            row = rows.setdefault(key, [0, 0, 0, -1])
            if extension in IMAGES:
                if row[0]:
                    raise UserError(f"{path}: sample {key} has two images")
                row[:3] = offset, len(content), zlib.crc32(content)
            elif extension == "cls":
                if not content.strip().isdigit():
                    raise UserError(f"{path}: sample {key}: its class {content[:20]} is no number")
                row[3] = int(content)
    found = np.array([tuple(row) for row in rows.values() if row[0]], ROW)
    return Scan(found, tuple(key for key, row in rows.items() if not row[0]))


def index_tar(path: Path) -> np.ndarray:
    """(n,) rows of ROW of a tar in which every sample must have an image."""
    scan = scan_tar(path)
    missing = scan.without_image
    if missing:
        raise UserError(f"{path}: {len(missing)} samples without an image, e.g. {missing[0]}")
    return scan.rows
