"""Slow, unreliable work in a thread, for a program that must not wait for it or fail with it."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from poa_ds.system.addresses import without_passwords
from poa_ds.system.console import say

S = TypeVar("S")

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
MOST_JOBS = 10_000  # beyond it new jobs are dropped: a dead server must not fill the memory


class Background(Generic[S]):
    """A thread that opens something (a store) and does jobs on it, one after the other.

    A failing job is tried again after growing pauses; where `is_final(error)` holds, the job is
    given up, and opening is as well. Of failures in a row the first of each kind is said on
    standard error, and that they are over.
    """

    def __init__(
        self,
        name: str,
        opening: Callable[[], S],
        *,
        is_final: Callable[[Exception], bool],
        advice: str,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._name, self._opening, self._is_final, self._advice = name, opening, is_final, advice
        self._first_pause_seconds = first_pause_seconds
        self._jobs: queue.SimpleQueue[Callable[[S], None] | None] = queue.SimpleQueue()
        self._opened: S | None = None
        self._closing = threading.Event()
        self._failing: set[bool] = set()  # the kinds that were said: final or not
        self._submitted = self._done = 0
        # a daemon: a call that hangs must not keep the process alive
        self._thread = threading.Thread(target=self._work_off, name=name, daemon=True)
        self._thread.start()

    @property
    def undone(self) -> int:
        """Jobs that were submitted and are not done, lost ones included."""
        return self._submitted - self._done

    def submit(self, job: Callable[[S], None]) -> None:
        """Queue the job and return at once."""
        self._submitted += 1
        if self._thread.is_alive() and self._jobs.qsize() < MOST_JOBS:
            self._jobs.put(job)

    def flush(self, timeout_seconds: float) -> bool:
        """Whether all jobs submitted so far came to their end in that time."""
        reached = threading.Event()
        self.submit(lambda _: reached.set())
        return reached.wait(timeout_seconds if self._thread.is_alive() else 0)

    def close(self, timeout_seconds: float) -> int:
        """The number of jobs left undone after the rest got that much time."""
        self._closing.set()
        self._jobs.put(None)
        self._thread.join(timeout_seconds)
        return self.undone

    def _work_off(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._attempt(job):
                return

    def _attempt(self, job: Callable[[S], None]) -> bool:
        """Do the job, sooner or later; False: there is no point in going on."""
        pause_seconds = self._first_pause_seconds
        while True:
            try:
                if self._opened is None:
                    self._opened = self._opening()
                job(self._opened)
            except Exception as error:  # the caller is told by `undone`, the user by these lines
                final = self._is_final(error)
                self._say(error, final)
                if final or self._closing.is_set():
                    return final and self._opened is not None
                self._closing.wait(pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
            else:
                self._done += 1
                if self._failing:
                    self._failing = set()
                    say(f"{self._name} works again")
                return True

    def _say(self, error: Exception, final: bool) -> None:
        if final in self._failing:
            return
        self._failing |= {final}
        cause = without_passwords(" ".join(f"{type(error).__name__}: {error}".split()))[:400]
        again = "given up" if final else "tried again from time to time"
        text = f"{self._name} failed ({again}; {self._advice}): {cause}"
        say(text)
