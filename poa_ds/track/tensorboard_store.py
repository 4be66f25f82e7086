"""One training run for TensorBoard: the folder `tensorboard` of the run, a run in it for each size.

Made from metrics.jsonl and evaluations.jsonl: anew when a run starts, by what they gain from then
on. So nothing comes twice and nothing is missing, whatever was interrupted. The only importer of
tensorboard, and only when a store is opened.
"""

import io
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from poa_ds.evaluate import score_rows
from poa_ds.model.space import Subnet
from poa_ds.system.lock import claim
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.metrics_file import OF_A_SIZE, Row, rows_after, size_of, values_of
from poa_ds.track.mlflow_client import IMPORTING
from poa_ds.track.mlflow_store import Status

TRAINING = "training"  # the run of what belongs to no size
MARK = ".poa_ds"  # ends the names of the files that are written here
ROWS_AT_A_TIME = 200


def open_store(folder: Path) -> "TensorboardStore":
    """The store in the run's folder, filled from its files. ImportError: no tensorboard."""
    with IMPORTING:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

    modules = (event_pb2, summary_pb2, tensor_pb2, types_pb2)
    return TensorboardStore(Messages(*modules, RecordWriter), folder)


class Messages:
    """TensorBoard's own messages, and how they stand in a file."""

    def __init__(self, event: Any, summary: Any, tensor: Any, types: Any, writer: Any) -> None:
        self._event, self._summary, self._tensor = event, summary, tensor
        self._types, self._writer = types, writer

    def version(self) -> Any:
        """What every file begins with."""
        return self._event.Event(wall_time=time.time(), file_version="brain.Event:2")

    def scalars(self, values: Mapping[str, float], step: int, seconds: float) -> Any:
        found = [self._summary.Summary.Value(tag=n, simple_value=x) for n, x in values.items()]
        return self._of(found, step, seconds)

    def image(self, tag: str, png: bytes, sides: tuple[int, int], step: int) -> Any:
        """sides: rows and columns of an image with red, green and blue."""
        picture = self._summary.Summary.Image(
            height=sides[0], width=sides[1], colorspace=3, encoded_image_string=png
        )
        return self._of([self._summary.Summary.Value(tag=tag, image=picture)], step, time.time())

    def text(self, tag: str, text: str, step: int) -> Any:
        """Shown as it is, in columns."""
        block = "\n".join(f"    {line}" for line in text.splitlines())
        tensor = self._tensor.TensorProto(
            dtype=self._types.DT_STRING,
            string_val=[block.encode()],
            tensor_shape={"dim": [{"size": 1}]},
        )
        metadata = {"plugin_data": {"plugin_name": "text"}}
        value = self._summary.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
        return self._of([value], step, time.time())

    def _of(self, values: list, step: int, seconds: float) -> Any:
        summary = self._summary.Summary(value=values)
        return self._event.Event(wall_time=seconds, step=step, summary=summary)

    def records(self, events: Iterable[Any]) -> bytes:
        buffer = io.BytesIO()
        writer = self._writer(buffer)
        for event in events:
            writer.write(event.SerializeToString())
        return buffer.getvalue()


class EventFile:
    """A file that TensorBoard reads while it grows. OSError leaves it as it was."""

    def __init__(self, messages: Messages, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}{MARK}"
        self._messages, self._size = messages, 0
        self._file = open(folder / name, "wb", buffering=0)
        self.add([messages.version()])

    def add(self, events: Iterable[Any]) -> None:
        content, written = self._messages.records(events), 0
        try:
            while written < len(content):  # a disk that fills up takes a part
                written += self._file.write(content[written:])
        except OSError:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise
        self._size += written

    def close(self) -> None:
        self._file.close()


class TensorboardStore:
    """One run and the runs of its sizes. Every call may raise, and may be made again then."""

    def __init__(self, messages: Messages, folder: Path) -> None:
        self._messages, self._files = messages, RunFolder(folder)
        self._opened: dict[str, EventFile] = {}
        self._offset, self._drawn, self._tabled = 0, set(), -1
        self._scores: dict[tuple[str, str, int], float] = {}
        self._files.tensorboard.mkdir(parents=True, exist_ok=True)
        self._lock = claim(self._files.tensorboard)
        for old in self._files.tensorboard.glob(f"*/events.out.tfevents.*{MARK}"):
            old.unlink()
        if self._files.recipe.is_file():
            text = self._files.recipe.read_text("utf-8")
            self._of(TRAINING).add([messages.text("recipe", text, 0)])
        self.catch_up()

    def catch_up(self) -> int:
        """The number of rows of the run's files that were added now."""
        return sum(self._fill()) + self._fill_scores()

    def _fill(self) -> Iterator[int]:
        if not self._files.metrics.is_file():
            return
        some: list[tuple[int, Row]] = []
        for found in rows_after(self._files.metrics, self._offset):
            some.append(found)
            if len(some) == ROWS_AT_A_TIME:
                yield self._add(some)
                some = []
        yield self._add(some)

    def _add(self, rows: list[tuple[int, Row]]) -> int:
        """A row that a full disk interrupts comes again: the same point, which shows as one."""
        for offset, row in rows:
            for run, values in _by_run(values_of(row)).items():
                scalars = self._messages.scalars(values, row["step"], row["time"])
                self._of(run).add([scalars])
            self._offset = offset
        return len(rows)

    def _fill_scores(self) -> int:
        added = 0
        rows = score_rows.read(self._files.evaluations)
        for row in {(row.size, row.name, row.step): row for row in rows}.values():  # the newest
            key, size = (row.size, row.name, row.step), Subnet.read(row.size)
            if size is None or self._scores.get(key) == row.value:  # a floor, or known
                continue
            scalars = self._messages.scalars({row.name: row.value}, row.step, time.time())
            self._of(str(size)).add([scalars])
            self._scores[key] = row.value
            added += 1
        return added

    def _of(self, run: str) -> EventFile:
        if run not in self._opened:
            self._opened[run] = EventFile(self._messages, self._files.tensorboard / run)
        return self._opened[run]

    def has_picture(self, step: int) -> bool:
        return step in self._drawn

    def picture(self, step: int, pixels: Any) -> None:
        """The heat map. pixels: (rows, columns, 3 or 4), uint8."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("RGB").save(buffer, "png")
        sides = (pixels.shape[0], pixels.shape[1])
        event = self._messages.image("knn_heatmap", buffer.getvalue(), sides, step)
        self._of(TRAINING).add([event])
        self._drawn.add(step)

    def table(self, step: int, text: str) -> bool:
        """Whether that table of k-NN accuracies was not there."""
        if step <= self._tabled:
            return False
        self._of(TRAINING).add([self._messages.text("knn", text, step)])
        self._tabled = step
        return True

    def close(self, status: Status = "FINISHED") -> None:
        """TensorBoard has no place for a status."""
        for file in self._opened.values():
            file.close()
        self._opened = {}
        os.close(self._lock)


def _by_run(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metrics of each run under names without the size, so that curves lie over each other."""
    found: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        match = OF_A_SIZE.fullmatch(name)
        run, short = (str(size_of(match[2])), match[1]) if match else (TRAINING, name)
        found.setdefault(run, {})[short] = value
    return found
