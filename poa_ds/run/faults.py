"""How a rank leaves that cannot go on: which one says why, and with which status each ends."""

import errno
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from poa_ds.run import exit_status
from poa_ds.system import last_words, limits, terminal
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError, UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# the launcher looks at its ranks once a second and ends with the status of one that has ended:
# that must be the rank that knows the cause
LOST_PAUSE_SECONDS = 5.0
KILLS_BEFORE = limits.memory_kills()  # when this rank began


def name() -> str:
    """This rank and its host, in words."""
    return f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"


class Fault(Exception):
    """An error of the training that nobody expected, its cause; and what this rank was doing."""


@contextmanager
def explained(where: Callable[[], str], output: str) -> Iterator[None]:
    """A block whose errors say what users need: a full disk its remedy, unexpected ones `where`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        mended = _mended(error, where(), output)
        if mended:
            raise mended from error
        raise Fault(where()) from error


def _mended(error: Exception, place: str, output: str) -> UserError | None:
    """What the user can do about it; None where nothing is known."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises for a dead loader, again
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return UserError(
            f"{error.filename or output}: {error.strerror} ({place}); "
            "once there is room, the same command continues from the newest checkpoint"
        )
    cause = last_words.heard() or limits.explained(error)
    if not cause:
        return None
    return UserError(f"{cause} ({place}); once that is mended, the same command continues")


def report(error: UserError | Fault | KeyboardInterrupt) -> int:
    """Say what ended this rank, if it is this rank's to say; the exit status."""
    is_first = os.environ.get("RANK", "0") == "0"
    if isinstance(error, KeyboardInterrupt):
        if is_first:
            say("\ninterrupted")
        return exit_status.INTERRUPTED
    if isinstance(error, Fault):
        assert isinstance(error.__cause__, Exception)
        return _report_unexpected(error.__cause__, str(error))
    if is_first or not isinstance(error, UsageError):  # wrong use is the same everywhere
        who = "poa_ds.train" if is_first else f"poa_ds.train: rank {os.environ['RANK']}"
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        say(f"{who}: error: {error}{notes}")
    return error.exit_status


def _report_unexpected(error: Exception, place: str) -> int:
    if not _is_lost(error):
        if hint := limits.killed(error):
            error.add_note(hint)
        text = "".join(traceback.format_exception(error))
        cause = f"{type(error).__name__}: {error}"
        say(f"{text}poa_ds.train: {name()} failed, {place}: {cause}")
        return exit_status.CRASHED
    cause = " ".join(str(error).split())[:160]
    lost("another rank ended, see its message", f"; {place} ({cause})")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # the launcher may end the pause
    time.sleep(LOST_PAUSE_SECONDS)
    return exit_status.LOST


def lost(what: str, more: str = "") -> None:
    """Say that another rank has ended; one that was killed has said nothing itself."""
    hint = limits.memory_killed(KILLS_BEFORE)
    say(f"poa_ds.train: {name()}: {what}{more}" + (f"\n  {hint}" if hint else ""))


def _is_lost(error: Exception) -> bool:
    """Whether a collective failed, which tells of another rank and not of this one."""
    if not isinstance(error, RuntimeError):
        return False
    import torch  # is there: what else would raise it

    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def taken_over(message: str) -> NoReturn:
    """End this rank, whose run's folder is another's now."""
    say(f"poa_ds.train: error: {message}")
    leave(exit_status.FAILED)


def leave(number: int) -> NoReturn:
    """End this process at once: no thread, loader process or lost connection holds it up."""
    terminal.close_all()
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(number)
