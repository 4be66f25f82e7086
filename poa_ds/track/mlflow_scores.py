"""Numbers of evaluations.jsonl as points in MLflow: linear_top1 and others of each size's run.

Evaluations are made during a training and long behind it, so the file itself is looked at: when a
training logs, by `poa-ds mlflow-sync`, and at the end of every `poa-ds eval`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from poa_ds.evaluate import score_rows
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.model.space import Subnet
from poa_ds.track.mlflow_view import allowed

PROTOCOL = "poa.protocol."  # + name: tag of a size's run, the letters of the newest protocol


class Scores:
    """Which rows the runs lack.

    A measure that is taken again at its step with another result is one more point, and the newest.
    """

    def __init__(self, client: Any, path: Path) -> None:
        self._client, self._path = client, path
        self._seen: tuple[int, int] | None = None
        self._known: dict[tuple[str, str], set[tuple[int, float]]] = {}

    def lacking(self, run_of: Callable[[str], str]) -> Iterator[tuple[str, ScoreRow, int]]:
        """(id of a size's run, row, its time in milliseconds), each to be logged before the next.

        run_of: label of a size -> id. Nothing while the file is what it was when all were logged.
        """
        if not self._path.is_file():
            return
        about = self._path.stat()
        if (mark := (about.st_size, about.st_mtime_ns)) == self._seen:
            return
        newest = {(row.size, row.name, row.step): row for row in score_rows.read(self._path)}
        for row in newest.values():
            size = Subnet.read(row.size)
            if size is None:  # a floor, which no run is made for
                continue
            points = self._points(run := run_of(size.label), row.name)
            if (row.step, row.value) not in points:
                yield run, row, about.st_mtime_ns // 1_000_000
                points.add((row.step, row.value))
        self._seen = mark

    def _points(self, run: str, name: str) -> set[tuple[int, float]]:
        if (run, name) not in self._known:
            history = self._client.get_metric_history(run, allowed(name))
            self._known[run, name] = {(metric.step, metric.value) for metric in history}
        return self._known[run, name]
