"""Image files that lie on a disk: which there are, in which order, and the label of each.

`poa-ds shard` writes them in this order, training reads them in it where they lie.
"""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from poa_ds.data.image.opening import Undecodable
from poa_ds.data.store.leftovers import NAMES
from poa_ds.data.store.scan import LARGEST_IMAGE
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.regular import check_regular

# folders that hold parts of a data set, and no class
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
SHUFFLE = 1 << 63  # second word of the key of the shuffle; epochs of a run take 0, 1, 2, ...
UNREADABLE = "unreadable folder"
HEAD = 16  # bytes that say what a file is
Passed = tuple[str, str]  # a file or folder that is none of the data, and why


@dataclass(frozen=True)
class Tree:
    """Files below `root` in order: their paths, and the number of the class of each, -1 for none.

    A path may be absolute, where a list names such.
    """

    root: Path
    names: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]
    passed: Sequence[Passed]


def below(root: Path) -> Tree:
    """All files of a folder; the first level of folders are the classes, each that is there."""
    ranks = {path.name: rank for rank, path in enumerate(folders(root))}
    found, passed = files(root, named_from=root)
    names, labels = [], []
    for inside in (path.relative_to(root) for path in found):
        reason = passed_over(inside)
        if reason:
            passed.append((str(inside), reason))
            continue
        names.append(str(inside))
        labels.append(ranks[inside.parts[0]] if len(inside.parts) > 1 else -1)
    return Tree(root, names, labels, list(ranks), passed)


def listed(path: Path, root: Path | None = None) -> Tree:
    """The files of a list, PATH or PATH<tab>CLASS a line; relative ones begin at `root`.

    root: where it is None, the folder of the list. The number of a class is its rank among the
    sorted names.
    """
    check_regular(path)
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no list of paths, one a line: it is no text") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    named: dict[str, str] = {}
    passed: list[Passed] = []
    for number, line in enumerate(lines, start=1):
        name, _, kind = line.partition("\t")
        if name in named:
            passed.append((name, f"named twice: again in line {number}"))
        elif line.strip():
            named[name] = kind.strip()
    classes = sorted({kind for kind in named.values() if kind})
    ranks = {kind: rank for rank, kind in enumerate(classes)}
    labels = [ranks.get(kind, -1) for kind in named.values()]
    return Tree(path.parent if root is None else root, [*named], labels, classes, passed)


def only_splits(classes: Sequence[str]) -> bool:
    """Whether these folders look like parts of a data set, and not like classes."""
    return bool(classes) and {name.lower() for name in classes} <= SPLITS


def shuffled(count: int, seed: int = 0) -> np.ndarray:
    """(count,) the order in which files become samples."""
    words = np.random.Philox(key=[seed, SHUFFLE]).random_raw(count)
    return np.argsort(words, kind="stable")


def passed_over(inside: Path) -> str:
    """Why a path inside the root is none of the data, or nothing."""
    if not NAMES.isdisjoint(inside.parts):
        return "left by a file manager"
    return "hidden file" if any(part.startswith(".") for part in inside.parts) else ""


def folders(root: Path) -> list[Path]:
    """The sub-folders that are not passed over, sorted by name."""
    try:
        found = list(root.iterdir())
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from error
    return sorted(path for path in found if path.is_dir() and not passed_over(Path(path.name)))


def files(root: Path, *, named_from: Path) -> tuple[list[Path], list[Passed]]:
    """(all files below root, the folders that were passed over); links are followed.

    Each folder is walked once. What is passed over has the path from `named_from`.
    """
    found: list[Path] = []
    passed: list[Passed] = []
    seen: set[Path] = set()

    def reject(folder: str, reason: str) -> None:
        passed.append((f"{Path(folder).relative_to(named_from)}/", reason))

    def unreadable(error: OSError) -> None:
        reject(error.filename, f"{UNREADABLE}: {error.strerror}")

    for folder, below, names in os.walk(root, onerror=unreadable, followlinks=True):
        real = Path(folder).resolve()
        if real in seen:
            below.clear()
            reject(folder, "a link to a folder that is read elsewhere")
            continue
        seen.add(real)
        below.sort()
        found += [Path(folder) / name for name in sorted(names)]
    return found, passed


def read(path: Path, *, look: Callable[[bytes], object] = lambda head: None) -> bytes:
    """The content of an image file; Undecodable where there is nothing to read.

    look: at its first bytes, before the rest of what may be a tar or a film is read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Undecodable("not a regular file")  # reading a pipe would wait for ever
        if status.st_size > LARGEST_IMAGE:
            raise Undecodable(f"too large: more than {LARGEST_IMAGE} bytes")
        with path.open("rb") as file:
            head = file.read(HEAD)
            look(head)
            return head + file.read()
    except OSError as error:
        raise Undecodable(f"unreadable file: {error.strerror}") from error
    except ValueError as error:  # a name with a zero byte
        raise Undecodable(f"unreadable file: {error}") from error
