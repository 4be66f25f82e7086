"""What reading an image costs where each is a file of its own, beside the folder that is there."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.loose import LooseFolder
from poa_ds.system.console import say


def reads(folder: ShardFolder, rows: Sequence[int], contents: Sequence[bytes]) -> dict[str, float]:
    """Wall milliseconds of one image: of the folder, and where it is none of files, of such.

    Each from the memory that the system keeps of files, and from the disk, where it was told to
    forget them; names and sizes of files stay known. contents: of the samples `rows`.
    """
    if isinstance(folder, LooseFolder):
        return _both(folder, rows, "files")
    found = _both(folder, rows, "shards")
    say("measuring files")
    beside = folder.path.parent if os.access(folder.path.parent, os.W_OK) else None
    with TemporaryDirectory(dir=beside, prefix=".bench-files-") as place:
        for number, content in enumerate(contents):
            (Path(place) / f"{number:09d}").write_bytes(content)
        files = LooseFolder.at(Path(place), None)
        return found | _both(files, range(len(files)), "files")


def _both(folder: ShardFolder, rows: Sequence[int], name: str) -> dict[str, float]:
    paths = {_path(folder, row) for row in rows}
    for row in rows:
        folder.read(row)  # they are in memory then
    warm = _each(folder, rows)
    for path in paths:
        _forget(path)
    return {f"{name}, from memory": warm, f"{name}, from the disk": _each(folder, rows)}


def _each(folder: ShardFolder, rows: Sequence[int]) -> float:
    begun = time.perf_counter()
    for row in rows:
        folder.read(row)
    return 1000 * (time.perf_counter() - begun) / len(rows)


def _path(folder: ShardFolder, row: int) -> Path:
    if isinstance(folder, LooseFolder):
        return folder.root / folder.name(row)
    return folder.path / folder.shard(row)


def _forget(path: Path) -> None:
    """Let the system drop what it keeps of a file in memory, as far as it does that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # what is not on the disk yet is kept
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
