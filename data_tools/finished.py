"""What an interrupted run has finished: one line per whole shard, so that it can be continued.

A line is written after its shard is on the disk. The next run believes it only as far as the plan
(input, seed, limits) is the same and the shards still have their checksums.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Self, TextIO

import numpy as np

from data_tools.parallel import ordered
from data_tools.sources import Altered, Rejected
from poa_ds.data.store.leftovers import leftover
from poa_ds.data.store.manifest import JOURNAL, MANIFEST, ShardFile
from poa_ds.data.store.scan import index_tar
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.progress import progress
from poa_ds.system.regular import check_regular


class Journal:
    """The finished part of a folder; a context that holds the folder against other writers."""

    def __init__(self, folder: Path, file: TextIO) -> None:
        self.folder, self._file = folder, file
        self.shards: list[ShardFile] = []
        self.rows: list[np.ndarray] = []  # of each shard
        self.rejected: list[Rejected] = []
        self.altered: list[Altered] = []
        self.next = 0  # place in the order of the first sample behind the finished shards

    @classmethod
    def open(cls, folder: Path, plan: str, *, workers: int) -> Self:
        """The journal of a run with this plan; what belongs to another one is removed."""
        check_regular(folder / JOURNAL)
        file = open(folder / JOURNAL, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"{folder}: another process is writing there") from None
        if (folder / MANIFEST).exists():  # since the caller looked
            file.close()
            (folder / JOURNAL).unlink(missing_ok=True)
            raise UserError(f"{folder}: another process has just finished it")
        journal = cls(folder, file)
        journal._recover(plan, workers)
        return journal

    def note(
        self,
        shard: ShardFile,
        *,
        following: int,
        rejected: list[Rejected],
        altered: list[Altered],
    ) -> None:
        """A shard is whole: `following` is the place behind it; what it passed over and changed."""
        self._line(
            {
                "shard": asdict(shard),
                "next": following,
                "rejected": [[item.file, item.reason] for item in rejected],
                "altered": [[item.file, item.change] for item in altered],
            }
        )

    def remove(self) -> None:
        """The folder is finished."""
        (self.folder / JOURNAL).unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _line(self, content: dict) -> None:
        self._file.write(json.dumps(content) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _recover(self, plan: str, workers: int) -> None:
        """Takes over what is whole and removes the rest."""
        self._file.seek(0)
        lines = list(_lines(self._file.read()))
        same = bool(lines) and lines[0][1].get("plan") == plan
        if lines and not same:
            say(f"{self.folder}: input or options changed, nothing is kept")
        notes = list(takewhile(_is_note, lines[1:])) if same else []
        shards = [ShardFile(**note["shard"]) for _, note in notes]
        checked = ordered(_rows, [(self.folder, shard) for shard in shards], workers)
        for (_, note), shard, rows in zip(
            notes,
            shards,
            progress(checked, total=len(shards), label=f"{self.folder.name} kept", unit="shards"),
            strict=True,
        ):
            if rows is None:
                break
            self.shards.append(shard)
            self.rows.append(rows)
            self.rejected += [Rejected(*item) for item in note["rejected"]]
            self.altered += [Altered(*item) for item in note.get("altered", ())]
            self.next = note["next"]
        if notes:
            kept = f"{len(self.shards)} of {len(notes)} shards are kept"
            say(f"{self.folder}: {kept}")
        self._file.truncate(lines[len(self.shards)][0] if same else 0)
        for path in self.folder.iterdir():
            ours = {JOURNAL, *(shard.file for shard in self.shards)}
            if path.name not in ours and not leftover(path.name):
                path.unlink()
        if not same:
            self._line({"plan": plan})


def _lines(text: str) -> Iterator[tuple[int, dict]]:
    """(end in bytes, content) of the whole lines; the last may be torn."""
    end = 0
    for line in text.splitlines(keepends=True):
        try:
            content = json.loads(line) if line.endswith("\n") else None
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            return
        end += len(line.encode())
        yield end, content


def _is_note(line: tuple[int, dict]) -> bool:
    """Whether a line is one that `note` has written, and no other hand."""
    note = line[1]
    shard, pairs = note.get("shard"), [note.get("rejected"), note.get("altered", [])]
    if not isinstance(shard, dict) or not all(isinstance(items, list) for items in pairs):
        return False
    kinds = [type(shard.get(name)) for name in ("file", "samples", "bytes", "sha256")]
    texts = all(isinstance(item, list) and len(item) == 2 for items in pairs for item in items)
    return (
        texts
        and len(shard) == 4
        and kinds == [str, int, int, str]
        and type(note.get("next")) is int
    )


def _rows(job: tuple[Path, ShardFile]) -> np.ndarray | None:
    """The rows of a shard that still is what it was; otherwise None."""
    folder, shard = job
    path = folder / shard.file
    try:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                return None
        return index_tar(path)
    except (OSError, UserError):  # gone or altered: it is written again
        return None
