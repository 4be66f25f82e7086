"""Images by number, wherever they lie: a tree of files, a list of files, or a shard folder."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from poa_ds.data.store import tree
from poa_ds.data.store.index import ShardFolder
from poa_ds.system.errors import UserError
from poa_ds.system.regular import check_regular

SUFFIXES = frozenset(
    f".{name}" for name in "jpg jpeg png webp gif bmp tif tiff ppm pgm pbm".split()
)


class Images(Protocol):
    """Encoded images 0 .. len - 1. hash: of what they are. classes: names of the labels."""

    hash: str
    classes: Sequence[str]

    def __len__(self) -> int: ...

    def key(self, number: int) -> str:
        """What names the image: a path, or shard/sample."""
        ...

    def label(self, number: int) -> int:
        """The number of its class, -1 for none."""
        ...

    def read(self, number: int) -> bytes:
        """OSError or UserError: it cannot be read."""
        ...


@dataclass(frozen=True)
class Shards:
    """The samples of a shard folder in their order."""

    folder: ShardFolder

    @property
    def hash(self) -> str:
        return self.folder.hash

    @property
    def classes(self) -> Sequence[str]:
        return self.folder.classes

    def __len__(self) -> int:
        return len(self.folder)

    def key(self, number: int) -> str:
        return self.folder.name(number)

    def label(self, number: int) -> int:
        return self.folder.label(number)

    def read(self, number: int) -> bytes:
        return self.folder.read(number)


@dataclass(frozen=True)
class Files:
    """Image files below `root`, in the order of `names`; labels: one for each, or -1."""

    root: Path
    names: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str] = ()

    @property
    def hash(self) -> str:
        """Of names, lengths and times of change: the files are not read for it."""
        digest = hashlib.sha256()
        for name in self.names:
            about = (self.root / name).stat()
            digest.update(
                f"{name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode(errors="replace")
            )
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def key(self, number: int) -> str:
        return self.names[number]

    def label(self, number: int) -> int:
        return self.labels[number]

    def read(self, number: int) -> bytes:
        path = self.root / self.names[number]
        check_regular(path)
        return path.read_bytes()


@dataclass(frozen=True)
class Part:
    """Some of the samples of a shard folder, by their numbers in it."""

    shards: Shards
    numbers: np.ndarray

    @property
    def hash(self) -> str:
        numbers = self.numbers.astype("<i8").tobytes()
        return hashlib.sha256(self.shards.hash.encode() + numbers).hexdigest()

    @property
    def classes(self) -> Sequence[str]:
        return self.shards.classes

    def __len__(self) -> int:
        return len(self.numbers)

    def key(self, number: int) -> str:
        return self.shards.key(int(self.numbers[number]))

    def label(self, number: int) -> int:
        return self.shards.label(int(self.numbers[number]))

    def read(self, number: int) -> bytes:
        return self.shards.read(int(self.numbers[number]))


def below(root: Path, option: str = "--images") -> Files:
    """All image files of a tree by the ends of their names, in sorted order.

    The first level of folders gives the labels. Hidden files and what file managers leave are
    passed over. UserError: there is no such folder, one in it cannot be read, or no image.
    """
    if not root.is_dir():
        raise UserError(f"{option} {root}: no such folder")
    found = tree.below(root)
    for name, reason in found.passed:
        if reason.startswith(tree.UNREADABLE):
            raise UserError(f"{option} {root / name}: {reason}")
    names = sorted(name for name in found.names if Path(name).suffix.lower() in SUFFIXES)
    if not names:
        raise UserError(
            f"{option} {root}: no image in it (files are taken by the ends of their names: "
            f"{', '.join(sorted(SUFFIXES))})"
        )
    own = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in names]
    return _labelled(root, names, own)


def listed(path: Path) -> Files:
    """The files that a text file names, PATH or PATH<tab>CLASS a line, relative to its folder.

    In its order. UserError: the list is missing or empty, or names a file that is not there.
    """
    check_regular(path)
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--list {path} cannot be read: {error}") from error
    rows = [line.partition("\t") for line in lines if line.strip()]
    if not rows:
        raise UserError(f"--list {path} names no image")
    names, own = [name for name, _, _ in rows], [label.strip() for _, _, label in rows]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"--list {path} names no file: {', '.join(missing[:3])}{more}")
    return _labelled(path.parent, names, own)


def _labelled(root: Path, names: Sequence[str], own: Sequence[str]) -> Files:
    """Files with the name of its class for each, empty for none."""
    classes = sorted(set(own) - {""})
    number = {name: place for place, name in enumerate(classes)}
    return Files(root, names, [number.get(name, -1) for name in own], classes)
