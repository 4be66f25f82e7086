"""RUN/report.html, written anew after evaluations and at the end of a run, by another process.

Such a page takes a second or some of a processor. It takes them at the lowest priority, and less
than 1 % of the time: after a page none is begun before the run has lasted 100 times as long again.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from poa_ds.system.console import say
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.tracker import Tracker

SHARE = 0.01  # of the time, at most
FIRST_SECONDS = 1.0  # that a page is taken to need before one was written
LOWEST_PRIORITY = 19
ENDED_BADLY_SECONDS = 10.0  # for the page of a run that did not come to its own end


class Pages:
    """Writes the page while the context lasts, and once more where an error ends it.

    writes: whether this rank does. Whatever goes wrong with a page is a line, and ends nothing.
    """

    def __init__(self, run: Path, tracker: Tracker, *, writes: bool) -> None:
        self._run, self._tracker, self._writes = run, tracker, writes
        self._seconds, self._rests_since = FIRST_SECONDS, time.monotonic()
        self._process: subprocess.Popen | None = None
        self._given_up = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.last(ENDED_BADLY_SECONDS)

    @property
    def due(self) -> bool:
        """Whether a page costs little enough by now, and none is being written."""
        writing = self._thread is not None and self._thread.is_alive()
        rested = time.monotonic() - self._rests_since
        return self._writes and not writing and self._seconds < SHARE * rested

    def write(self) -> None:
        """Begin the page, where it is due, and return at once."""
        if self.due:
            self._begin(LOWEST_PRIORITY)

    def last(self, seconds: float) -> None:
        """Write the page of the run's end, in that time, and give it to MLflow; only once."""
        if not self._writes:
            return
        self._writes, end = False, time.monotonic() + seconds
        self._end_process()  # it would show the run as it was
        self._thread = None
        self._begin(0)
        if self._thread is not None:
            self._thread.join(end - time.monotonic())
            if self._thread.is_alive():
                self._end_process()
                say(f"warning: no report within {seconds:g} s; it is: poa-ds report {self._run}")
            elif not self._process.returncode and RunFolder(self._run).report.is_file():
                self._tracker.artifact(RunFolder(self._run).report)

    def _begin(self, priority: int) -> None:
        page, self._given_up = RunFolder(self._run).report, False
        command = [sys.executable, "-m", "poa_ds.cli", "report", str(self._run), f"--out={page}"]
        # DeepSpeed's launcher sends what a failing rank has started SIGTERM: this ends by itself
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            # in a group of its own: an interrupt of the terminal is the training's
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                process_group=0,
            )
            if priority:  # else the training's own, which `nice` may have lowered
                os.setpriority(os.PRIO_PROCESS, self._process.pid, priority)
        except OSError as error:
            say(f"warning: the report is not written: {error}")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._thread = threading.Thread(
            target=self._watch, args=(self._process,), name="report", daemon=True
        )
        self._thread.start()

    def _watch(self, process: subprocess.Popen) -> None:
        began = time.monotonic()
        _, wrong = process.communicate()
        self._rests_since = time.monotonic()
        self._seconds = self._rests_since - began
        if process.returncode and not self._given_up:
            last = wrong.decode(errors="replace").strip().rpartition("\n")[2]
            cause = last.removeprefix("poa-ds: error: ") or f"status {process.returncode}"
            say(f"warning: the report is not written: {cause}")

    def _end_process(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._given_up = True
            self._process.kill()
            self._thread.join()
