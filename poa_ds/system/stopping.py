"""Requests to stop: signals, and launchers that are gone. They are noted here and obeyed elsewhere.

SIGTERM, SIGUSR1 and SIGHUP may reach the ranks one after the other, 30 seconds apart: so a rank
only notes them, all ranks agree at the end of a step, and save. Python runs handlers in the main
thread only, between two of its own instructions; it writes the number of the signal into a pipe at
once. The watchdog's thread reads that pipe: a rank that waits for others for ever still obeys.
"""

import errno
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

# a launcher hands on a signal that its ranks got as well: that is not the user's second one
SAME_SECONDS = 2.0
PARENT_SECONDS = 1.0  # between two looks of a loader process at its rank


class Stopped(Exception):
    """All ranks have agreed to stop, and are between two batches."""


def requests() -> list[signal.Signals]:
    """The signals that ask for a stop. Under nohup, which ignores it, SIGHUP is none of them."""
    numbers = [signal.SIGTERM, signal.SIGUSR1]
    hangup_counts = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [*numbers, signal.SIGHUP] if hangup_counts else numbers


class Requests:
    """What this process was asked. `wanted`: why it shall stop, empty as long as nobody asks.

    Make it early: the launcher must still be there.
    """

    def __init__(self) -> None:
        self.wanted, self.wanted_since = "", math.inf
        self.interrupted = False
        self._first: dict[bool, float] = {}  # is it Ctrl-C -> when
        self._launchers = _launchers(os.environ)
        if _one_is_gone(self._launchers):
            self._want("the end of its launcher")
        self._pipe, self._writing = os.pipe()
        self._numbers = (signal.SIGINT, *requests())
        for end in (self._pipe, self._writing):
            os.set_blocking(end, False)

    def install(self) -> None:
        """Listen to signals and to the end of the output's reader; in the main thread."""
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, _noted)
        signal.signal(signal.SIGINT, self._interrupt)
        reader = "its launcher" if self._launchers else "the reader of its output"
        lost = partial(self._want, f"the end of {reader}")
        sys.stdout, sys.stderr = _Outlasting(sys.stdout, lost), _Outlasting(sys.stderr, lost)

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
        return [number for number in numbers if number in self._numbers]

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        """Raised inside a destructor it would be lost: the loop looks at `interrupted` as well."""
        self.interrupted = True
        raise KeyboardInterrupt


class _Outlasting:
    """A stream whose reader may go: a terminal, or a launcher on another host, whose end closes it.

    The rank that learns it by an error must still save.
    """

    def __init__(self, stream: TextIO, lost: Callable[[], None]) -> None:
        self._stream, self._lost = stream, lost

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        if error.errno == errno.ENOSPC:
            return  # lines of a log are lost, the training is not
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
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
    for number in (signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
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
    found = [os.getppid()][:levels]
    while len(found) < levels:
        found.append(_state_and_parent(found[-1])[1])
    return found


def _one_is_gone(launchers: list[int]) -> bool:
    """Whether a process of deepspeed ended before this one could note it.

    Its second one shares the process group of the ranks, and the first leads it; a shell of another
    host, or one that runs a script, may stand there instead.
    """
    if len(launchers) < 2:
        return False
    group = os.getpgid(0)
    try:
        second, first = (os.getpgid(launcher) != group for launcher in launchers)
    except ProcessLookupError:
        return True
    return second or (first and _state_and_parent(group)[0] in ("", "Z"))


def _state_and_parent(process: int) -> tuple[str, int]:
    """As Linux names them, Z a zombie; empty and 0 where it is gone, or where there is no /proc."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    state, parent = text.rpartition(")")[2].split()[:2]  # the name in brackets may hold anything
    return state, int(parent)
