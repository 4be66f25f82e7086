"""Images that stay the files they are, read in the place of a shard folder.

Each is read once: its size and its crc32 are a row of the index that shards have, so that order,
damage, evaluations and continuing are theirs. The index is kept, and counts as long as no file has
another name, size or time of change.
"""

import functools
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np

from poa_ds.data.image.opening import Undecodable, check_picture, factory
from poa_ds.data.image.values import Values, check_header
from poa_ds.data.store import tree
from poa_ds.data.store.index import INDEX, SampleError, ShardFolder, load_index
from poa_ds.data.store.manifest import MANIFEST, Manifest, ShardFile
from poa_ds.data.store.tarwalk import ROW
from poa_ds.data.store.tree import Passed, Tree
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.files import publish_folder
from poa_ds.system.lock import alone
from poa_ds.system.printable import printable
from poa_ds.system.progress import progress

NAMES, REJECTED = "names", "rejected.jsonl"
LIKE_A_SHARD = 1000  # images, where shards count (data.block_shards): as `poa-ds shard` takes them
READERS = 16  # files at a time while they are indexed
PORTION = 4096  # files that the readers are given at a time
LISTED = 5  # files that a message names

Beat = Callable[[], None]  # called while it takes long: there is progress
Check = Callable[[bytes], None]  # Undecodable where the header is that of no image


class LooseFolder(ShardFolder):
    """Image files as samples. path: the folder, or the list that names them.

    root: where their paths begin. names: (bytes,) uint8, the paths one behind the other, each with
    a zero byte at its end. kept: where the index lies; None: in memory alone.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        index: np.ndarray,
        *,
        root: Path,
        names: np.ndarray,
        kept: Path | None,
    ) -> None:
        super().__init__(path, manifest, index)
        self.root, self.names, self.kept = root, names, kept
        self._ends = np.flatnonzero(names == 0)
        if len(self._ends) != len(index):
            raise UserError(f"{kept} is damaged: remove it, it is made again")

    @classmethod
    def at(
        cls,
        place: Path,
        cache: Path | None,
        beat: Beat = lambda: None,
        values: Values | None = None,
    ) -> Self:
        """The images of a folder or of a list, indexed where no index of them is in the cache.

        values: what they are, if not ordinary images.
        Processes that ask for the same one wait for the first. UserError: there is no image.
        """
        found = tree.below(place) if place.is_dir() else tree.listed(place)
        check = check_picture if values is None else check_header
        if cache is None:
            manifest, index, names, _ = _indexed(found, place, beat, check)
            return cls(place, manifest, index, root=found.root, names=names, kept=None)
        if place.is_dir() and cache.resolve().is_relative_to(place.resolve()):
            raise UsageError(
                f"{cache} lies inside {place}, whose images are read: choose another output_dir, "
                "or data.cache"
            )
        kind = "images" if values is None else "measured"
        kept = cache.absolute() / f"{kind}-{_fingerprint(found, place, beat)[:32]}"
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with alone(kept.with_name(f"{kept.name}.lock"), waiting=beat):
                if not (kept / MANIFEST).is_file():
                    _keep(kept, *_indexed(found, place, beat, check))
        except OSError as error:
            raise UserError(
                f"{cache}, for indexes of images, cannot be used: {error.strerror}"
            ) from error
        return cls.of(place, found.root, kept)

    @classmethod
    def of(cls, place: Path, root: Path, kept: Path) -> Self:
        """The images whose index is kept there."""
        manifest = Manifest.read(kept)
        names = np.memmap(kept / NAMES, np.uint8, "r")
        return cls(place, manifest, load_index(kept, manifest), root=root, names=names, kept=kept)

    def name(self, sample: int) -> str:
        """The path of its file, from the root on."""
        start = int(self._ends[sample - 1]) + 1 if sample else 0
        return os.fsdecode(self.names[start : self._ends[sample]].tobytes())

    def key(self, sample: int) -> str:
        return self.name(sample)

    def read(self, sample: int) -> bytes:
        """The encoded image; SampleError when its bytes are not those that were indexed."""
        row = self.index[sample]
        try:
            content = tree.read(self.root / self.name(sample))
        except Undecodable as error:
            raise self.error(sample, str(error)) from error
        if len(content) != row["size"]:
            raise self.error(sample, f"has {len(content)} bytes, {row['size']} were indexed")
        if zlib.crc32(content) != row["crc32"]:
            raise self.error(sample, "changed: its bytes do not fit the crc32 of the index")
        return content

    def error(self, sample: int, cause: str) -> SampleError:
        """The error that names a sample."""
        return SampleError(str(self.path), self.name(sample), cause)

    def changes_since(self, data_hash: str) -> str:
        """Which files came, went or changed since the index of that hash; empty: it is not kept."""
        kind = self.kept.name.partition("-")[0] if self.kept else ""
        for manifest in self.kept.parent.glob(f"{kind}-*/{MANIFEST}") if self.kept else ():
            if Manifest.read(manifest.parent).index_sha256 == data_hash:
                before = LooseFolder.of(self.path, self.root, manifest.parent)
                return _difference(before._contents(), self._contents())
        return ""

    def _contents(self) -> dict[str, tuple]:
        """Name -> size, checksum and label of every image."""
        rows = self.index[["size", "crc32", "label"]].tolist()
        return {self.name(sample): row for sample, row in enumerate(rows)}

    def __getstate__(self) -> dict[str, Any]:
        if self.kept is None:
            return {name: x for name, x in vars(self).items() if name != "labels"}
        return {"path": self.path, "root": self.root, "kept": self.kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["kept"] is None:
            vars(self).update(state)
        else:
            vars(self).update(vars(type(self).of(**{"place": state.pop("path"), **state})))


def is_images(place: Path) -> bool:
    """Whether a path is a list, or a folder that holds other things than shards."""
    if not place.is_dir():
        return place.is_file()
    shards = ("dataset.json", "unfinished.jsonl", "shard-*", f"*/{MANIFEST}")
    return not any(any(place.glob(name)) for name in shards) and any(place.iterdir())


def _fingerprint(found: Tree, place: Path, beat: Beat) -> str:
    """Of all that says, without opening a file, that these are the images that were indexed."""
    digest = hashlib.sha256(json.dumps([str(place.resolve()), [*found.classes]]).encode())
    for name, label in zip(found.names, found.labels, strict=True):
        beat()
        try:
            about = (found.root / name).stat()
            file = f"{about.st_size} {about.st_mtime_ns}"
        except (OSError, ValueError):
            file = "absent"
        digest.update(f"{name}\0{label} {file}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


Indexed = tuple[Manifest, np.ndarray, np.ndarray, list[Passed]]


def _indexed(found: Tree, place: Path, beat: Beat, check: Check) -> Indexed:
    """What dataset.json, index and names will hold, and the files that are no images."""
    if place.is_dir() and tree.only_splits(found.classes):
        say(
            f"warning: {place} holds {' and '.join(found.classes)}: these become the classes; "
            f"for the images of one alone: {place / found.classes[0]}"
        )
    order = tree.shuffled(len(found.names))
    rows, names, passed = [], bytearray(), list(found.passed)
    about = progress(_read(found, order, check), total=len(order), label="index", unit="files")
    for number, row in zip(order, about, strict=True):
        beat()
        if isinstance(row, str):
            passed.append((found.names[number], row))
        else:
            rows.append((0, *row, found.labels[number]))
            names += os.fsencode(found.names[number]) + b"\0"
    passed.sort()
    if not rows:
        reasons = "".join(f"\n  {printable(name)}: {why}" for name, why in passed[:LISTED])
        raise UserError(
            f"{place}: no image and no {MANIFEST} in it: it is neither a folder of images nor one "
            f"of shards (tars of another tool: `poa-ds index`){reasons}"
        )
    index = np.array(rows, ROW)
    manifest = _manifest(found, place, index, rejected=len(passed))
    return manifest, index, np.frombuffer(bytes(names), np.uint8), passed


def _read(found: Tree, order: np.ndarray, check: Check) -> Iterator[tuple[int, int] | str]:
    """(size, crc32) of each file in this order, or why it is no image."""
    with ThreadPoolExecutor(READERS) as readers:
        for first in range(0, len(order), PORTION):
            paths = [found.root / found.names[n] for n in order[first : first + PORTION]]
            yield from readers.map(functools.partial(_row, check=check), paths)


def _row(path: Path, check: Check) -> tuple[int, int] | str:
    try:
        content = tree.read(path, look=factory)
        check(content)
        return len(content), zlib.crc32(content)
    except Undecodable as error:
        return str(error)


def _manifest(found: Tree, place: Path, index: np.ndarray, *, rejected: int) -> Manifest:
    sizes = index["size"].astype(np.int64)
    parts = [sizes[first : first + LIKE_A_SHARD] for first in range(0, len(index), LIKE_A_SHARD)]
    shards = [
        ShardFile(f"files {number}", len(part), int(part.sum()), "")
        for number, part in enumerate(parts)
    ]
    counts = {"samples": len(index), "bytes": int(sizes.sum()), "rejected": rejected}
    digest = hashlib.sha256(_encoded(index)).hexdigest()
    return Manifest(tuple(shards), tuple(found.classes), digest, counts, {"files": str(place)})


def _encoded(index: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, index)
    return file.getvalue()


def _keep(
    kept: Path, manifest: Manifest, index: np.ndarray, names: np.ndarray, passed: list[Passed]
) -> None:
    """Writes the index, whole or not at all."""
    lines = [json.dumps({"file": name, "reason": reason}) + "\n" for name, reason in passed]
    with TemporaryDirectory(dir=kept.parent, prefix="indexing-") as place:
        folder = Path(place) / kept.name
        folder.mkdir()
        (folder / INDEX).write_bytes(_encoded(index))
        (folder / NAMES).write_bytes(names.tobytes())
        (folder / REJECTED).write_text("".join(lines))
        (folder / MANIFEST).write_text(manifest.to_json())
        try:
            publish_folder(folder, kept)
        except OSError:
            if not (kept / MANIFEST).is_file():  # else another was first, whom no lock held here
                raise
    if passed:
        name, reason = passed[0]
        say(
            f"{manifest.made['files']}: {len(index):,} images; {len(passed):,} other files, the "
            f"first {printable(name)} ({printable(reason)}); all are in {kept / REJECTED}"
        )


def _difference(before: dict[str, tuple], now: dict[str, tuple]) -> str:
    """Which images are other ones, in words."""
    kinds = {
        "added": now.keys() - before.keys(),
        "removed": before.keys() - now.keys(),
        "changed": {name for name in now.keys() & before.keys() if now[name] != before[name]},
    }
    return ", ".join(
        f"{len(names):,} {kind} ({printable(min(names))}{', ...' if len(names) > 1 else ''})"
        for kind, names in kinds.items()
        if names
    )
