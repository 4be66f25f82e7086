"""A stream that is read once from front to back, unpacked on the way where it is packed."""

import bz2
import gzip
import lzma
from typing import Protocol

from poa_ds.system.errors import UserError

PIECE = 1 << 20  # bytes that are passed over at a time
UNPACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
PROGRAMS = {b"\x28\xb5\x2f\xfd": "zstd -dc", b"\x04\x22\x4d\x18": "lz4 -dc"}  # no library is here
LONGEST = max(map(len, (*UNPACKED, *PROGRAMS)))


class Source(Protocol):
    """What can be read from front to back."""

    def read(self, size: int, /) -> bytes: ...


class Forward:
    """What tars are walked through with: it reads, and moves forward by reading."""

    def __init__(self, file: Source, name: str) -> None:
        """UserError where only another program unpacks it; `name` is what errors call it."""
        begin = _Begun(file)
        for packed, program in PROGRAMS.items():
            if begin.first.startswith(packed):
                raise UserError(f"{name} is compressed: data.train can be `pipe:{program} {name}`")
        opener = next((u for magic, u in UNPACKED.items() if begin.first.startswith(magic)), None)
        self.file = begin if opener is None else opener(begin)
        self.position = 0

    def seek(self, position: int) -> None:
        assert position >= self.position, "backwards in a stream"
        while left := position - self.position:
            if not self.read(min(left, PIECE)):
                return

    def read(self, size: int) -> bytes:
        """So many bytes; fewer at the end alone."""
        parts, left = [], size
        while left and (part := self.file.read(left)):
            parts.append(part)
            left -= len(part)
        self.position += size - left
        return b"".join(parts)


class _Begun:
    """A stream of which the first bytes were looked at."""

    def __init__(self, file: Source) -> None:
        self.file, self.first = file, b""
        while len(self.first) < LONGEST and (part := file.read(LONGEST - len(self.first))):
            self.first += part
        self._left = self.first

    def read(self, size: int = -1) -> bytes:
        if self._left:
            cut = len(self._left) if size < 0 else size
            part, self._left = self._left[:cut], self._left[cut:]
            return part
        return self.file.read(size)

    def seekable(self) -> bool:
        return False

    def readable(self) -> bool:
        return True
