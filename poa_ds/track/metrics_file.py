"""metrics.jsonl: every number of a run in one plain file, whatever becomes of the tracking server.

One line per call, {"step": 40, "time": 1700000000.0, "loss": 8.1, ...}, written before anything
else hears of it, so that a store can be filled from it later.
"""

import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poa_ds.model.space import Subnet
from poa_ds.system import json_text
from poa_ds.system.errors import UserError
from poa_ds.system.files import replace_text
from poa_ds.system.regular import check_regular

Row = dict[str, Any]
PIXELS = "knn_floor/raw_pixels"
OF_A_SIZE = re.compile(r"(knn_\w+)/(w\d+_d[\d-]+)")


def read_rows(path: Path) -> list[Row]:
    """All rows of the file; a last line that a kill cut short does not count."""
    return lines_with_steps(path, _metrics)


def lines_with_steps(path: Path, parse: Callable[[bytes], Row]) -> list[Row]:
    """The same of any file whose lines are objects with a `step`. UserError names a wrong one."""
    check_regular(path)
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [parse(line)] if line else []
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is damaged: {error}") from error
    return rows


def _metrics(line: bytes, **more: type) -> Row:
    row = json_text.parse_object(line, step=int, **more)
    json_text.numbers(row)
    return row


def rows_after(path: Path, offset: int = 0) -> Iterator[tuple[int, Row]]:
    """(offset behind it, row) of each whole line from that byte on."""
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):  # being written, or cut short by a kill
                return
            try:
                row = _metrics(line, time=float) if line.strip() else None
            except ValueError as error:
                raise UserError(f"{path}, the line from byte {offset:,} on: {error}") from error
            offset += len(line)
            if row is not None:
                yield offset, row


class MetricsFile:
    """An open metrics.jsonl. `last` has the last step of every metric: points never come twice."""

    def __init__(self, path: Path, *, keep_through: int | None) -> None:
        """Keeps the rows up to step `keep_through` of what is there; None starts afresh."""
        found = keep_through is not None and path.exists()
        rows = [r for r in read_rows(path) if r["step"] <= keep_through] if found else []
        self.last = {name: row["step"] for row in rows for name in values_of(row)}
        self._unwritten: deque[bytes] = deque()
        rewrite(path, rows)
        self._file = open(path, "ab", buffering=0)
        self._size = path.stat().st_size

    def append(self, step: int, values: Mapping[str, float]) -> Row:
        """The row that was written: the metrics that had no point at this step or a later one.

        OSError: the disk is full, say. The row is kept then, and written by the next call that can.
        """
        fresh = {name: x for name, x in values.items() if step > self.last.get(name, -1)}
        row = {"step": step, "time": round(time.time(), 3), **fresh}
        if fresh:
            self.last.update(dict.fromkeys(fresh, step))
            self._unwritten.append(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._write()
        return row

    def _write(self) -> None:
        while self._unwritten:
            line, written = self._unwritten[0], 0
            try:
                while written < len(line):  # a disk that fills up takes a part
                    written += self._file.write(line[written:])
            except OSError:
                self._file.truncate(self._size)
                raise
            self._size += len(line)
            self._unwritten.popleft()

    def sync(self) -> None:
        """Bring all rows onto the disk, so that a host that fails does not lose them."""
        self._write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """OSError: rows that could not be written are lost now."""
        try:
            self._write()
        finally:
            self._file.close()


def rewrite(path: Path, rows: Iterable[Row]) -> None:
    """Put those rows in the place of what is there, at once."""
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def values_of(row: Row) -> dict[str, float]:
    """The metrics of a row."""
    return {name: value for name, value in row.items() if name not in ("step", "time")}


@dataclass(frozen=True)
class Floors:
    """k-NN top-1 in percent that need no training: raw pixels; each size with random weights."""

    pixels: float | None = None
    random: Mapping[Subnet, float] = field(default_factory=dict)


def knn_values(
    top1: Mapping[Subnet, Mapping[int, float]], floors: Floors, *, report_k: int
) -> dict[str, float]:
    """The metrics of an evaluation: knn_top1/w0384_d12 (k = report_k), knn_k100/..., floors."""
    values = {f"knn_top1/{size.label}": by_k[report_k] for size, by_k in top1.items()}
    for size, by_k in top1.items():
        values |= {f"knn_k{k}/{size.label}": percent for k, percent in by_k.items()}
    values |= {f"knn_random/{size.label}": percent for size, percent in floors.random.items()}
    return values if floors.pixels is None else values | {PIXELS: floors.pixels}


def knn_curves(rows: Iterable[Row]) -> tuple[dict[Subnet, list[tuple[int, float]]], Floors]:
    """Each size's (step, percent) points, and the floors as they were last logged."""
    curves: dict[Subnet, list[tuple[int, float]]] = {}
    pixels, random = None, {}
    for row in rows:
        pixels = row.get(PIXELS, pixels)
        for name, percent in values_of(row).items():
            match = OF_A_SIZE.fullmatch(name)
            if match is not None and match[1] == "knn_top1":
                curves.setdefault(size_of(match[2]), []).append((row["step"], percent))
            elif match is not None and match[1] == "knn_random":
                random[size_of(match[2])] = percent
    return dict(sorted(curves.items())), Floors(pixels, random)


def size_of(label: str) -> Subnet:
    """The size that a label in a metric's name stands for."""
    size = Subnet.read(label)
    assert size is not None, label
    return size
