"""Long series made short: what a chart of a thousand points shows, with every spike kept."""

import math
from collections.abc import Sequence

from poa_ds.track.metrics_file import Row, values_of

MOST_ROWS = 1200
STEPWISE = ("health/alarm", "skipped_total")  # every change of these is kept
OF_A_SIZE = ("knn_",)  # accuracies come from knn.jsonl, evaluation by evaluation


def thinned(rows: Sequence[Row], most: int = MOST_ROWS) -> list[Row]:
    """Rows with a number only where a chart needs it, about `most` points a series.

    Of each stretch of rows every series keeps its first, least and greatest value, so that a spike
    of any of them survives.
    """
    names = sorted({name for row in rows for name in values_of(row)})
    kept: dict[int, Row] = {}
    for name in (name for name in names if not name.startswith(OF_A_SIZE)):
        points = [(row["step"], row[name]) for row in rows if name in row]
        for step, value in _points(points, most, stepwise=name in STEPWISE):
            kept.setdefault(step, {"step": step})[name] = value
    return [kept[step] for step in sorted(kept)]


def _points(
    points: list[tuple[int, float]], most: int, *, stepwise: bool
) -> list[tuple[int, float]]:
    if len(points) <= most:
        return points
    stretch = math.ceil(3 * len(points) / most)
    chosen = {0, len(points) - 1}
    for start in range(0, len(points), stretch):
        indices = range(start, min(start + stretch, len(points)))
        chosen |= {
            start,
            min(indices, key=lambda i: points[i][1]),
            max(indices, key=lambda i: points[i][1]),
        }
    if stepwise:
        changes = [i for i in range(1, len(points)) if points[i][1] != points[i - 1][1]]
        chosen |= {j for i in changes for j in (i - 1, i)}
    return [points[i] for i in sorted(chosen)]


def columns(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Of each series its steps and its values, five significant digits of them."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, value in values_of(row).items():
            series = found.setdefault(name, {"steps": [], "values": []})
            series["steps"].append(row["step"])
            series["values"].append(rounded(value))
    return found


def rounded(x: float | None) -> float | None:
    """Five significant digits: what a chart can show."""
    return None if x is None else float(f"{x:.5g}")
