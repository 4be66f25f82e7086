"""knn.jsonl: every k-NN evaluation of a run with its protocol, one row each, only ever appended.

{"step": 300, "protocol": {...}, "knn": {"384x12": {"10": 61.2, "20": 62.0}},
 "floors": {"raw_pixels": {"10": ...}, "random_weights": {"384x12": {"10": ...}}}}   in percent
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, sqrt
from pathlib import Path
from typing import Any, Protocol, TypeVar

from poa_ds.model.space import Subnet
from poa_ds.system import json_text
from poa_ds.system.errors import UserError
from poa_ds.system.files import replace_text
from poa_ds.system.lock import alone

T = TypeVar("T")
Accuracies = Mapping[int, float]  # k -> percent


@dataclass(frozen=True)
class KnnRow:
    """One row. raw_pixels, random_weights: the floors, where they were measured."""

    step: int
    protocol: Mapping[str, Any]
    knn: Mapping[str, Accuracies]  # size -> its accuracies
    raw_pixels: Accuracies = field(default_factory=dict)
    random_weights: Mapping[str, Accuracies] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        step: int,
        protocol: Mapping[str, Any],
        knn: Mapping[Subnet, Accuracies],
        *,
        raw_pixels: Accuracies | None = None,
        random_weights: Mapping[Subnet, Accuracies] | None = None,
    ) -> "KnnRow":
        """A row; sizes without finite features (NaN) are left out."""
        knn = {
            subnet: values for subnet, values in knn.items() if not any(map(isnan, values.values()))
        }
        named = {str(subnet): values for subnet, values in knn.items()}
        floors = {str(subnet): values for subnet, values in (random_weights or {}).items()}
        return cls(step, protocol, named, raw_pixels or {}, floors)

    def to_json(self) -> str:
        floors = {"raw_pixels": self.raw_pixels, "random_weights": self.random_weights}
        floors = {name: values for name, values in floors.items() if values}
        row = {"step": self.step, "protocol": self.protocol, "knn": self.knn, "floors": floors}
        return json.dumps(row)

    @classmethod
    def from_json(cls, line: str) -> "KnnRow":
        row = json_text.parse_object(line, step=int, protocol=dict, knn=dict, floors=dict)
        floors = row["floors"]
        random_weights = floors.get("random_weights", {})
        return cls(
            row["step"],
            row["protocol"],
            {size: _by_k(values) for size, values in row["knn"].items()},
            _by_k(floors.get("raw_pixels", {})),
            {size: _by_k(values) for size, values in random_weights.items()},
        )


def _by_k(values: Mapping[str, float]) -> dict[int, float]:
    json_text.numbers(values)
    return {int(k): percent for k, percent in values.items()}


class Row(Protocol):
    """What becomes a line of a file."""

    def to_json(self) -> str: ...


def append(path: Path, row: Row) -> None:
    """Add one row, on the disk when this returns; in the place of one that was cut short."""
    with alone(path), open(path, "ab") as file:
        before = path.read_bytes() if file.tell() else b""
        if before and not before.endswith(b"\n"):  # or the new row would go on in that line
            file.truncate(before.rfind(b"\n") + 1)
        file.write(row.to_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[KnnRow]:
    """All rows, [] without the file; a last line that a kill cut short does not count."""
    return lines(path, KnnRow.from_json)


def lines(path: Path, row: Callable[[str], T]) -> list[T]:
    """A row from each line, [] without the file; a cut last line does not count."""
    if not path.is_file():
        return []
    *whole, _cut_short = path.read_text("utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            rows.append(row(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is damaged: {error}") from error
    return rows


def error(percent: float, queries: int) -> float:
    """Half of the 95 % interval of an accuracy, in points, of one size by itself."""
    return 1.96 * sqrt(percent * (100 - percent) / queries)


def newest(rows: Sequence[KnnRow], step: int) -> dict[str, tuple[Accuracies, Mapping]]:
    """Size -> (accuracies, protocol) of its last evaluation at that step."""
    return {
        size: (values, row.protocol)
        for row in rows
        if row.step == step
        for size, values in row.knn.items()
    }


def table(row: KnnRow) -> str:
    """The evaluation as text: a line per size and floor, a column per k."""
    columns = sorted({k for values in row.knn.values() for k in values})
    most = row.protocol.get("k_at_most", 0)

    width = max(10, *map(len, row.knn), 0) + 2

    def line(name: str, values: Accuracies, floor: Accuracies | None) -> str:
        cells = [f"{values[k]:9.2f}" for k in columns]
        below = [f"{floor[k]:9.2f}" for k in columns] if floor else []
        return f"{name:<{width}}" + "".join(cells + below)

    floors = row.random_weights
    heads = [f"k={k}{'*' * (k > most > 0)}" for k in columns]
    title = f"k-NN top-1 in %, step {row.step}, {describe(row.protocol)}"
    lines = [title + (", then random weights" if floors else "")]
    lines.append(
        f"{'size':<{width}}" + "".join(f"{head:>9}" for head in heads * (2 if floors else 1))
    )
    lines += [line(size, v, floors.get(size)) for size, v in row.knn.items()]
    if row.raw_pixels:
        lines.append(line("raw pixels", row.raw_pixels, None))
    if any(k > most > 0 for k in columns):
        lines.append(f"* the bank has {most} images: k is {most} there")
    return "\n".join(lines)


def describe(protocol: Mapping[str, Any]) -> str:
    """The protocol in a few words, the same for the same protocol."""
    bank, queries = protocol["bank"], protocol["queries"]
    return (
        f"{queries['images']:,} queries in a bank of {bank['images']:,} of {bank['of']:,} images, "
        f"crop {protocol['crop']} of {protocol['resize']}, {protocol['precision']}"
    )


class Stepped(Row, Protocol):
    """A row of an evaluation."""

    step: int


def keep_through(path: Path, step: int, row: Callable[[str], Stepped] = KnnRow.from_json) -> None:
    """Drop the rows after `step`: a run that goes on from there writes them again."""
    if not any(found.step > step for found in lines(path, row)):
        return
    with alone(path):
        kept = [found.to_json() + "\n" for found in lines(path, row) if found.step <= step]
        replace_text(path, "".join(kept))
