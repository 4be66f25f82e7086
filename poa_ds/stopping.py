"""Requests to stop: signals, and launchers that are gone. They are noted here and obeyed elsewhere.

SIGTERM and SIGUSR1 may reach the ranks one after the other, 30 seconds apart: so a rank only notes
them, all ranks agree at the end of a step, and save. Python runs handlers in the main thread only,
between two of its own instructions; it writes the number of the signal into a pipe at once. The
watchdog's thread reads that pipe: a rank that waits for others for ever still obeys.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

REQUESTS = (signal.SIGTERM, signal.SIGUSR1)
# a launcher hands on a signal that its ranks got as well: that is not the user's second one
SAME_SECONDS = 2.0
PARENT_SECONDS = 1.0  # between two looks of a loader process at its rank
SUPERVISED = "POA_DS_SUPERVISED"  # set by `poa-ds launch` in what it starts on its own host


class Stopped(Exception):
    """All ranks have agreed to stop, and are between two batches."""


class Requests:
    """What this process was asked. `wanted`: why it shall stop, empty as long as nobody asks.

    Make it in the main thread, early: the launcher must still be there.
    """

    def __init__(self) -> None:
        self.wanted, self.wanted_since = "", math.inf
        self.interrupted = False
        self._first: dict[bool, float] = {}  # is it Ctrl-C -> when
        self._launchers = _launchers(os.environ)
        self._pipe, writing = os.pipe()
        for end in (self._pipe, writing):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in REQUESTS:
            signal.signal(number, _noted)
        signal.signal(signal.SIGINT, self._interrupt)
        if self._launchers:
            sys.stdout, sys.stderr = map(self._outlasting, (sys.stdout, sys.stderr))

    def _outlasting(self, stream: TextIO) -> "_Outlasting":
        return _Outlasting(stream, lambda: self._want("the end of its launcher"))

    def look(self) -> int:
        """Note what has arrived since; the number of a signal that came a second time, or 0."""
        for number in self._received():
            is_interrupt = number == signal.SIGINT
            before = self._first.setdefault(is_interrupt, time.monotonic())
            if time.monotonic() - before > SAME_SECONDS:
                return number
            if not is_interrupt:
                self._want(signal.Signals(number).name)
        if _launchers(os.environ) != self._launchers:
            self._want("the end of its launcher")
        return 0

    def _want(self, reason: str) -> None:
        if not self.wanted:
            self.wanted, self.wanted_since = reason, time.monotonic()

    def _received(self) -> list[int]:
        try:
            numbers = os.read(self._pipe, 4096)
        except BlockingIOError:
            return []
        return [number for number in numbers if number in (signal.SIGINT, *REQUESTS)]

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        """Raised inside a destructor it would be lost: the loop looks at `interrupted` as well."""
        self.interrupted = True
        raise KeyboardInterrupt


class _Outlasting:
    """A stream whose reader may go: a launcher on another host that ends closes the connection.

    The rank that learns it by a broken pipe must still save.
    """

    def __init__(self, stream: TextIO, lost: Callable[[], None]) -> None:
        self._stream, self._lost = stream, lost

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        self._lost()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _noted(number: int, _: FrameType | None) -> None:
    """Nothing: a handler of Python's is what makes the number arrive in the pipe."""


def leave_signals_to_the_parent() -> None:
    """For loader processes, which launchers signal too: the rank still needs their batches.

    Only the parent's own SIGTERM ends them, or its end: a process of a fork server, which is how
    PyTorch starts them, has another parent for the system and would stay.
    """
    signal.set_wakeup_fd(-1)  # a forked process would write into its parent's pipe
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    while parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, PARENT_SECONDS)
        if received and received.si_pid == parent.pid:
            break
    os._exit(0)


def _launchers(environment: Mapping[str, str]) -> list[int]:
    """The processes above this one that belong to its launcher; none where nothing launched it.

    deepspeed starts a second process per host which starts the ranks; torchrun starts them itself.
    What is above those may be a shell, which may end.
    """
    levels = 2 if "CROSS_RANK" in environment else int("TORCHELASTIC_RUN_ID" in environment)
    levels += SUPERVISED in environment
    found = [os.getppid()][:levels]
    while len(found) < levels:
        found.append(_parent(found[-1]))
    return found


def _parent(process: int) -> int:
    """The parent of a process; 0 where it is gone, or where there is no /proc."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.rpartition(")")[2].split()[1])  # the name in brackets may hold anything
