"""Other programs started as a process group of their own, so that none of it outlives its use."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import psutil

from poa_ds.system.errors import UserError

LOOK_SECONDS = 0.2
TOLD = 1500  # bytes of a log's end, of which lines are shown
LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Group:
    """A command and everything that it starts in its process group.

    An interrupt of the terminal does not reach it: it gets each signal once, from here. When this
    process is gone, killed perhaps, Linux sends the command SIGTERM.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        output: IO[bytes] | None = None,
    ) -> None:
        """output: where both of its streams go; to this program's where there is none."""
        on_linux = sys.platform == "linux"
        self._first = subprocess.Popen(
            [*command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            process_group=0,
            preexec_fn=partial(LIBC.prctl, PR_SET_PDEATHSIG, signal.SIGTERM) if on_linux else None,
        )

    def status(self) -> int | None:
        """How the command itself has ended, as shells report it; None while it runs."""
        status = self._first.poll()
        if status is None or 0 <= status < 192:
            return status
        # deepspeed hands on the negative number of a signal as one byte
        return 128 + (-status if status < 0 else 256 - status)

    def wait(self, seconds: float, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """Whether the last process has ended within that time."""
        end = time.monotonic() + seconds
        while self._alive():
            if time.monotonic() > end or unless():
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def signal(self, number: int) -> None:
        """Signal every process of the group; SIGKILL: and wait for the command."""
        try:
            os.killpg(self._first.pid, number)
        except ProcessLookupError:
            pass  # the last one has just ended
        if number == signal.SIGKILL:
            self._first.wait()

    def signal_first(self, number: int) -> None:
        """Signal the command itself."""
        self._first.send_signal(number)

    @contextmanager
    def ending(self, seconds: float, *, first: bool = False) -> Iterator[None]:
        """Ended behind the block, however that is left: asked, and killed after that time.

        first: the command alone is asked, which asks the others.
        """
        try:
            yield
        finally:
            try:
                (self.signal_first if first else self.signal)(signal.SIGTERM)
                self.wait(seconds)
            finally:  # a second interrupt does not wait
                self.signal(signal.SIGKILL)

    def _alive(self) -> bool:
        """Zombies do not count: where nobody reaps orphans they stay for ever."""
        self._first.poll()
        for process in psutil.pids():
            try:
                if os.getpgid(process) != self._first.pid:
                    continue
                if psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
                    return True
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue  # it has just ended
        return False


def last_lines(log: Path, lines: int = 3) -> str:
    """What a program has printed last into that file, in one line."""
    text = log.read_bytes()[-TOLD:].decode(errors="replace")
    found = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(found[-lines:]) or "it has printed nothing"


def free_port() -> int:
    """A port of this machine that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    """Whether a program of this machine takes connections at that port."""
    with socket.socket() as probe:
        probe.settimeout(LOOK_SECONDS)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def beside_python(program: str) -> Path:
    """The program of this environment, relative to here where that is shorter to type."""
    path = Path(sys.executable).parent / program
    if not path.is_file():
        raise UserError(f"{path} is missing: install poa_ds into this environment (make setup)")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def gpus() -> int:
    """How many this process may use."""
    import torch  # seconds; `poa-ds launch --help` does without

    return torch.cuda.device_count()
