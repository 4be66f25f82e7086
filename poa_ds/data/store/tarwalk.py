"""Walking through uncompressed tars strictly: a damaged or cut archive is an error, never its end.

tarfile and WebDataset take a damaged header for the end of the archive and lose the rest without a
word. Names may be plain, PAX or GNU long names, as the usual tools write them.
"""

import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from poa_ds.system.errors import UserError
from poa_ds.system.printable import printable

ROW = np.dtype([("offset", "<i8"), ("size", "<i4"), ("crc32", "<u4"), ("label", "<i4")])
BLOCK = 512  # bytes, of a tar header; data is padded to it
PIECE = 1 << 20  # bytes read at a time behind the end
LARGEST = 1 << 50  # bytes of a member; above, positions overflow
DIGITS = 20  # of a length or a size
HEADER = 1 << 20  # bytes of an extended header, at most: names in it are shorter
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
OTHERS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
PAX, PAX_GLOBAL, LONG_NAME = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME


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
        if not 0 <= size < LARGEST:
            raise UserError(f"{name}: damaged tar header at byte {position}: a size of {size}")
        if member.type in (PAX, PAX_GLOBAL, LONG_NAME):
            if size > HEADER:
                raise UserError(f"{name}: at byte {position}: a header of {size} bytes")
            content = file.read(size)
            if member.type != PAX_GLOBAL:
                extended |= _extended(member.type, content, f"{name}: at byte {position}")
        elif member.type in REGULAR:
            yield extended.get("path", member.name), position + BLOCK, size
        elif member.type != tarfile.DIRTYPE:
            kind = OTHERS.get(member.type, "of an unusual kind")
            raise UserError(
                f"{name}: {printable(member.name)} is {kind}: only plain files are read"
            )
        if member.type in REGULAR or member.type == tarfile.DIRTYPE:
            extended = {}  # it was said of this member
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


def tar_members(
    file: BinaryIO, name: str, wanted: Callable[[str], bool], *, most: int
) -> Iterator[tuple[str, bytes]]:
    """(member, content) of each regular file; of one that is not wanted b"", as it is not read."""
    for member, offset, size in tar_entries(file, name):
        content = content_of(file, name, member, offset, size, most=most) if wanted(member) else b""
        yield member, content


def content_of(
    file: BinaryIO, name: str, member: str, offset: int, size: int, *, most: int
) -> bytes:
    """The content of a member where the file stands now, of at most so many bytes."""
    if size > most:
        raise UserError(f"{name}: {printable(member)} has {size} bytes, of {most} at most")
    padded = size + -size % BLOCK
    content = file.read(padded)
    if len(content) < padded:
        raise UserError(f"{name}: cut short inside {printable(member)} at byte {offset - BLOCK}")
    return content[:size]


def _member(header: bytes, problem: str) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise UserError(f"{problem}: {error}") from error


def _extended(kind: bytes, content: bytes, place: str) -> dict:
    """The path and the size that an extended header gives to the next member."""
    if kind == LONG_NAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found, begin, end = {}, 0, len(content.rstrip(b"\0"))
    while begin < end:
        length, _, _ = content[begin : begin + DIGITS].partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(content) - begin:
            raise UserError(f"{place}: damaged PAX header")
        line = content[begin + len(length) + 1 : begin + int(length) - 1]
        key, _, value = line.partition(b"=")
        if key == b"path":
            found["path"] = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not value.isdigit() or len(value) > DIGITS:
                raise UserError(f"{place}: damaged PAX header")
            found["size"] = int(value)
        begin += int(length)
    return found
