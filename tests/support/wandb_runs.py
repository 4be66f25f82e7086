"""What the files of wandb hold that a run without a network writes: an independent reader.

A file is a header of 7 bytes, then blocks of 32 KiB with records as LevelDB's logs have them.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BLOCK, HEAD = 32768, 7
WHOLE, FIRST, LAST = 1, 2, 4


@dataclass
class OfflineRun:
    """A run as its file tells it. rows: what was logged, in order. exit_code: None where open."""

    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    config: dict[str, object] = field(default_factory=dict)
    rows: list[dict[str, object]] = field(default_factory=list)
    exit_code: int | None = None

    def points(self, name: str) -> list[tuple[int, float]]:
        return [(row["step"], row[name]) for row in self.rows if name in row]


def runs(folder: Path) -> dict[str, OfflineRun]:
    """Id -> run, of the folder `wandb` of a run; fails where one is there twice."""
    found = [_run(path) for path in sorted(folder.glob("offline-run-*/run-*.wandb"))]
    assert len({run.id for run in found}) == len(found), [run.id for run in found]
    return {run.id: run for run in found}


def _run(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    found = OfflineRun()
    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.id, found.name, found.group = run.run_id, run.display_name, run.run_group
            found.job_type, found.project = run.job_type, run.project
            found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "history":
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            found.rows.append(row)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _records(content: bytes) -> Iterator[bytes]:
    place, parts = HEAD, []
    while place + HEAD <= len(content):
        if BLOCK - place % BLOCK < HEAD:  # no room for a head: zeros up to the next block
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if kind == 0 or place + HEAD + length > len(content):  # it is being written
            return
        parts.append(content[place + HEAD : place + HEAD + length])
        place += HEAD + length
        if kind in (WHOLE, LAST):
            yield b"".join(parts)
            parts = []
