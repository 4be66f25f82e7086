"""What a run costs as it goes: images per second, waiting for data, memory."""

import resource
import time
from collections import deque
from collections.abc import Iterator, Mapping
from statistics import median

import torch

from poa_ds.data.batch import Batch
from poa_ds.system import dist
from poa_ds.system.console import tell
from poa_ds.system.printable import figure

DATA_WAIT_SHARE = 0.05  # of a step; above it the images come too slowly
RECENT_ROWS = 9  # whose median is the time of a step to come


class Clock:
    """Images per second, the share of time spent waiting for data, and memory."""

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self.seconds: list[float] = []
        self.evaluation_seconds = self.save_seconds = 0.0  # that the last one held up the steps
        self._save_is_new = False  # no row has it yet
        self._recent: deque[float] = deque(maxlen=RECENT_ROWS)  # seconds of a step
        self.slow: bool | None = None  # whether data came too slowly; None: before the first row
        self.restart()

    def restart(self) -> None:
        """Forget what was measured since the last `take`."""
        self.steps, self.waited, self.started = 0, 0.0, time.perf_counter()

    def waiting_for(self, batches: Iterator[list[Batch]]) -> list[Batch]:
        start = time.perf_counter()
        found = next(batches)
        self.waited += time.perf_counter() - start
        return found

    def step_done(self) -> None:
        if torch.cuda.is_available() and len(self.seconds) < 2:  # a dry run times these
            torch.cuda.synchronize()
        self.steps += 1
        self.seconds.append(time.perf_counter())

    def saved(self, seconds: float) -> None:
        """A checkpoint held up the steps so long; the next row has it."""
        self.save_seconds, self._save_is_new = seconds, True

    def take(self) -> dict[str, float]:
        """The figures since the last call."""
        elapsed, steps = time.perf_counter() - self.started, max(self.steps, 1)
        row = {
            "speed/images_per_second": self.images_per_step * steps / elapsed,
            "speed/step_ms": 1000 * elapsed / steps,
            "speed/data_wait_ms": 1000 * self.waited / steps,
            "memory/host_gib": _host_gib(),
        }
        if torch.cuda.is_available():
            row["memory/device_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self._save_is_new:
            row["speed/save_seconds"], self._save_is_new = self.save_seconds, False
        self._recent.append(elapsed / steps)
        self.restart()
        return row

    def recall(self, row: Mapping[str, float]) -> None:
        """A row of the run that goes on: what its last evaluation and its last save took."""
        self.evaluation_seconds = row.get("speed/evaluation_seconds", self.evaluation_seconds)
        self.save_seconds = row.get("speed/save_seconds", self.save_seconds)

    def left(self, steps: int, evaluations: int, saves: int) -> float:
        """Seconds of that many of each: steps as the usual recent one, the others as their last.

        After `take`.
        """
        others = evaluations * self.evaluation_seconds + saves * self.save_seconds
        return steps * median(self._recent) + others

    def warning(self, row: dict[str, float], workers: int) -> str:
        """What to say when the steps begin to wait for data; empty as long as nothing changes.

        The first row is not judged: the workers were starting. Waiting is over when it is below
        half the share at which it began: a run at the limit says it once.
        """
        share = row["speed/data_wait_ms"] / row["speed/step_ms"]
        begins = self.slow is False and share > DATA_WAIT_SHARE
        limit = DATA_WAIT_SHARE / 2 if self.slow else DATA_WAIT_SHARE
        self.slow = self.slow is not None and share > limit
        return (
            f"warning: {share:.0%} of a step is waiting for data: data.workers {workers} are too "
            "few for this machine (`poa-ds bench data` says how many are needed)"
            if begins
            else ""
        )

    def report(self, steps: int) -> None:
        """Print what the second step took, and what a run of `steps` would."""
        second = self.seconds[-1] - self.seconds[-2]
        speed = figure(self.images_per_step / second)
        memory = f"{_host_gib():.2f} GiB of host memory"
        if torch.cuda.is_available():
            memory += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of device memory"
        if dist.is_main():
            hours = second * steps / 3600
            tell(
                f"dry run: the second step took {second:.3f} s "
                f"({speed} images/s); rank 0 used at most {memory}.\n"
                f"{steps:,} such steps take {hours:,.2f} hours, evaluations not counted. "
                "Nothing was written."
            )


def _host_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
