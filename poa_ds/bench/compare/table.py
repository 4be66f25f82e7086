"""Who is ahead where: the runs side by side, size by size, as text, JSON and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from typing import Any

import numpy as np

from poa_ds.bench.compare.runs import Compared, Point
from poa_ds.evaluate import results
from poa_ds.evaluate.right import Right, paired
from poa_ds.model.space import Subnet
from poa_ds.system.printable import duration, short

UNKNOWN = "-"


@dataclass(frozen=True)
class Lead:
    """Of the best run of a size before the second one, in points. error: of this, 95 %.

    by_query: both answered the same queries, and it is known which of them each got right.
    """

    name: str
    points: float
    error: float
    by_query: bool

    @property
    def shown(self) -> bool:
        return self.points > self.error

    def __str__(self) -> str:
        text = f"{self.name} {self.points:+.1f} ± {self.error:.1f}{'' if self.by_query else '~'}"
        return text if self.shown else f"not shown ({text})"


@dataclass(frozen=True)
class Row:
    """One size. knn: run -> (percent, its error); lead: None where fewer than two have it."""

    size: str
    knn: Mapping[str, tuple[float, float]]
    lead: Lead | None


def rows(runs: Sequence[Compared], points: Sequence[Point | None]) -> list[Row]:
    """Every size that any of the runs has, small ones first."""
    both = zip(runs, points, strict=True)
    measured = [(run.name, point, run.right(point)) for run, point in both if point]
    sizes = {size for _, point, _ in measured for size in point.knn}
    return [_row(size, measured) for size in sorted(sizes, key=_order)]


def _order(size: str) -> tuple[int, tuple[int, ...]]:
    subnet = Subnet.read(size)
    assert subnet is not None, size
    return subnet.width, subnet.stages


def _row(size: str, measured: Sequence[tuple[str, Point, Right]]) -> Row:
    knn = {
        name: (p.knn[size], results.error(p.knn[size], p.protocol["queries"]["images"]))
        for name, p, _ in measured
        if size in p.knn
    }
    answers = {name: (p.protocol, right.get(size)) for name, p, right in measured}
    best, *others = sorted(knn, key=lambda name: -knn[name][0])
    lead = None
    if others:
        (first, e1), (second, e2) = knn[best], knn[others[0]]
        error = _error(answers[best], answers[others[0]])
        lead = Lead(
            best,
            first - second,
            hypot(e1, e2) if error is None else error,
            by_query=error is not None,
        )
    return Row(size, knn, lead)


def _error(
    first: tuple[Mapping, np.ndarray | None], second: tuple[Mapping, np.ndarray | None]
) -> float | None:
    """Of the difference of two accuracies; None where it is not known which queries were right."""
    if first[0] != second[0] or first[1] is None or second[1] is None:
        return None
    return paired(first[1], second[1])[1]


def text(
    runs: Sequence[Compared],
    points: Sequence[Point | None],
    found: Sequence[Row],
    *,
    title: str,
    marked: Sequence[str],
) -> str:
    """The comparison in aligned columns; runs of another protocol are marked by ≠."""
    head = ["size", *(run.name + " ≠" * (run.name in marked) for run in runs), "ahead"]
    lines = [head]
    for row in found:
        cells = [_cell(row.knn.get(run.name)) for run in runs]
        lines.append([row.size, *cells, str(row.lead) if row.lead else UNKNOWN])
    lines.append(["raw pixels", *(_percent(run.pixels) for run in runs), ""])
    random = [_range([*run.random.values()]) for run in runs]
    lines.append(["random weights", *random, ""])
    for label in ("step", "images", "TFLOP", "time"):
        lines.append([label, *(_cost(point, label) for point in points), ""])
    return f"{title}\n{_aligned(lines)}"


def _cell(measured: tuple[float, float] | None) -> str:
    return f"{measured[0]:.1f} ± {measured[1]:.1f}" if measured else UNKNOWN


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}" if values else UNKNOWN


def _cost(point: Point | None, label: str) -> str:
    if point is None:
        return UNKNOWN
    if label == "step":
        return f"{point.step:,}"
    if label == "images":
        return short(int(point.cost["images"] or 0)) if point.step else "0"
    value = point.cost["flops" if label == "TFLOP" else "seconds"]
    if value is None:
        return UNKNOWN
    return f"{value / 1e12:,.1f}" if label == "TFLOP" else duration(value)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, len(widths) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def record(
    runs: Sequence[Compared],
    points: Sequence[Point | None],
    found: Sequence[Row],
    marked: Sequence[str],
) -> dict[str, Any]:
    """The same as JSON, with every evaluation of every run."""
    return {
        "runs": [
            {
                "name": run.name,
                "compared_step": None if point is None else point.step,
                "other_protocol": run.name in marked,
                "pixels": run.pixels,
                "random": dict(run.random),
                "teacher": run.teacher,
                "evaluations": [asdict(p) for p in run.points],
            }
            for run, point in zip(runs, points, strict=True)
        ],
        "sizes": [
            {
                "size": row.size,
                "knn": {n: {"percent": v, "error": e} for n, (v, e) in row.knn.items()},
                "lead": None if row.lead is None else {**asdict(row.lead), "shown": row.lead.shown},
            }
            for row in found
        ],
    }


def as_csv(runs: Sequence[Compared], points: Sequence[Point | None], found: Sequence[Row]) -> str:
    """A line for each size and run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    costs = ("images", "seconds", "flops")
    writer.writerow(["size", "run", "step", *costs, "knn", "error", "random", "ahead"])
    for row in found:
        for run, point in zip(runs, points, strict=True):
            if point is None or run.name not in row.knn:
                continue
            ahead = bool(row.lead and row.lead.shown and row.lead.name == run.name)
            cost, random = [point.cost[name] for name in costs], run.random.get(row.size)
            writer.writerow(
                [row.size, run.name, point.step, *cost, *row.knn[run.name], random, ahead]
            )
    return text.getvalue().rstrip("\n")
