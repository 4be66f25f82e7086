"""The four lines of a run (standing.py) at the foot of its terminal; elsewhere nothing is drawn."""

import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from poa_ds.evaluate.results import KnnRow
from poa_ds.run.standing import Standing, lines
from poa_ds.system.terminal import Foot, draws
from poa_ds.track.metrics_file import Row

HEIGHT = 4
LEAST_SECONDS = 0.2  # between two drawings where nothing but the step is new
EARLIER_ROWS = 6  # so far back the change of the loss looks


class Screen:
    """Draws a run as it goes on, inside of its context, where a terminal is there."""

    def __init__(
        self,
        standing: Standing,
        page: Path,
        *,
        draws_there: bool,
        stream: TextIO,
        environment: Mapping[str, str],
    ) -> None:
        """page: the run's report, shown once it is there. draws_there: whether this rank does."""
        self._standing, self._page = standing, page
        possible = draws_there and draws(stream, environment)
        self._foot = Foot(stream, height=HEIGHT) if possible else None
        self._coloured = not environment.get("NO_COLOR")
        self._ascii_only = "utf" not in (stream.encoding or "").lower()
        self._rows: deque[Row] = deque(maxlen=EARLIER_ROWS)
        self._drawn = float("-inf")

    @classmethod
    def nowhere(cls) -> Self:
        """One that draws nothing: the lines of a log say it all."""
        nothing, page = Standing("", 0, 1), Path()
        return cls(nothing, page, draws_there=False, stream=sys.stderr, environment={})

    @property
    def replaces_lines(self) -> bool:
        """Whether the reader of standard output sees the four lines."""
        return self._foot is not None and self._foot.is_shown and sys.stdout.isatty()

    def __enter__(self) -> Self:
        self._draw()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._foot:
            self._foot.close()

    def step(self, step: int) -> None:
        """A step is done: often too little to draw for."""
        self._standing = replace(self._standing, step=step)
        if time.monotonic() - self._drawn >= LEAST_SECONDS:
            self._draw()

    def row(self, row: Row, *, seconds_left: float, evaluation_seconds_left: float) -> None:
        """The metrics of the step that is done."""
        self._rows.append(row)
        self._standing = replace(
            self._standing,
            step=row["step"],
            row=row,
            earlier=self._rows[0] if len(self._rows) > 1 else {},
            seconds_left=seconds_left,
            evaluation_seconds_left=evaluation_seconds_left,
        )
        self._draw()

    def evaluated(self, row: KnnRow) -> None:
        self._standing = replace(self._standing, knn=row)
        self._draw()

    def saved(self, step: int) -> None:
        if step != self._standing.saved:
            self._standing = replace(self._standing, saved=step)
            self._draw()

    def _draw(self) -> None:
        size = self._foot and self._foot.size()
        if not size:
            return
        self._drawn = time.monotonic()
        page = str(self._page) if self._page.is_file() else ""
        shown = replace(self._standing, report=page)
        columns = size.columns - 1  # the last one is left free: nothing ever wraps
        found = lines(shown, columns, coloured=self._coloured, ascii_only=self._ascii_only)
        self._foot.draw(found)
