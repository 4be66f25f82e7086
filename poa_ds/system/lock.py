"""A folder that one program at a time may write to: who holds it, and which locks are leftovers.

The lock is a file that names its holder, who touches it every few seconds. Of a process of this
machine the system tells whether it lives; one of another host counts as gone when its file does
not change for a while, as seen from here: no clock is compared with another, or asked at all.
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.files import NO_LOCKS, replace_text
from poa_ds.system.regular import check_regular

NAME = "lock.json"
BEAT_SECONDS = 5.0
LEASE_SECONDS = 30.0  # a host that gives no sign for so long is gone
SETTLE_SECONDS = 1.0  # of several that take over a leftover, the last one has it
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Holder:
    """place, started: which process of that number it is, where this can be told."""

    what: str
    host: str
    process: int
    since: str
    place: str
    started: str
    token: str

    def __str__(self) -> str:
        return f"{self.what}, process {self.process} on {self.host}, since {self.since}"


@contextmanager
def held(
    folder: Path, what: str, *, lost: Callable[[str], None], name: str = NAME
) -> Iterator[None]:
    """The folder, made where it is missing, is this program's own for the block.

    what: the program, in words. lost: called by another thread when it is not any more. UserError:
    another program has it.
    """
    path = folder / name
    own, is_new = _this_process(what), not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made a folder: {error.strerror}") from error
    ends = threading.Event()
    beat = threading.Thread(target=_keep, args=(path, own, lost, ends), name="lock", daemon=True)
    try:  # all of it: an interrupt may come between any two lines
        try:
            _take(path, own)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        beat.start()
        yield
    finally:
        ends.set()
        if _holder(path) == own:
            path.unlink(missing_ok=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def alone(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Processes of this machine pass the block one after the other.

    path: a folder, or a file, which is made where it is missing and may be replaced in the block.
    waiting: called again and again while another process has it.
    """
    handle = _open_alone(path, waiting)
    try:
        yield
    finally:
        # a process forked meanwhile has the same open file: closing ours would not release it
        _flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def claim(folder: Path) -> int:
    """A handle that keeps others from writing there while it is open. UserError: another does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise UserError(f"{folder} is being written by another process: the run") from error
    return handle


def _open_alone(path: Path, waiting: Callable[[], None] | None) -> int:
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    while True:
        handle = os.open(path, flags, 0o666)
        try:
            if waiting is None:
                _flock(handle, fcntl.LOCK_EX)
            while waiting is not None and not _flocked(handle):
                waiting()
                time.sleep(LOOK_SECONDS)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # replaced while this one waited


def _flocked(handle: int) -> bool:
    try:
        _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flock(handle: int, operation: int) -> None:
    try:
        fcntl.flock(handle, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _this_process(what: str) -> Holder:
    process = os.getpid()
    return Holder(
        what=what,
        host=socket.gethostname(),
        process=process,
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        place=_place(),
        started=_started(process),
        token=uuid.uuid4().hex,
    )


def _place() -> str:
    """Where process numbers mean the same: this boot of the machine, this container."""
    if sys.platform != "linux":
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _started(process: int) -> str:
    """When it started, on a clock that nobody sets where there is one; empty: it has ended."""
    try:
        if sys.platform != "linux":
            return str(psutil.Process(process).create_time())
        text = Path(f"/proc/{process}/stat").read_text()
    except (OSError, psutil.NoSuchProcess):
        return ""
    values = text.rpartition(")")[2].split()  # the name in brackets may hold anything
    return "" if values[0] in "ZX" else values[19]


def _is_hidden(process: int) -> bool:
    """Whether it lives, but another user's processes are not shown here (hidepid)."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return not _started(process)
    return False


def _take(path: Path, own: Holder) -> None:
    while True:
        try:
            with open(path, "x") as file:
                file.write(_text(own))
            return
        except FileExistsError:
            leftover = _leftover(path)
        if leftover is None:
            continue  # it has just gone
        found = _holder(path)
        if found is not None and found.token != leftover:
            continue  # another was quicker
        replace_text(path, _text(own))
        time.sleep(SETTLE_SECONDS)
        if _holder(path) == own:
            return


def _text(holder: Holder) -> str:
    return json.dumps(asdict(holder)) + "\n"


def _leftover(path: Path) -> str | None:
    """The token of a holder that is gone, None where there is no lock. UserError: it is held."""
    holder = _holder(path)
    if holder is not None and holder.place == _place() and not _is_hidden(holder.process):
        if _started(holder.process) == holder.started:
            raise _in_use(path, holder)
        say(f"{path.parent} was used by {holder}, which has ended without a word: taken over")
        return holder.token
    before, end = _sign(path), time.monotonic() + LEASE_SECONDS
    who = holder or "a program whose name cannot be read"
    if before is not None:
        say(f"{path.parent} is used by {who}: looks for a sign of it for {LEASE_SECONDS:.0f} s")
    while time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        now = _sign(path)
        if now is None:
            return None
        if now != before:
            found = _holder(path)
            if found is None:  # being written
                before = now
                continue
            raise _in_use(path, found)
    say(f"no sign of {who}: {path.parent} is taken over")
    return holder.token if holder else ""


def _in_use(path: Path, holder: Holder) -> UserError:
    return UserError(
        f"{path.parent} is in use by {holder}: wait until that has ended, end it, or take another "
        f"folder (output_dir=, --out). {path.name} there needs no removal: it counts as long as "
        "that lives"
    )


def _holder(path: Path) -> Holder | None:
    """Whom the file names; None where there is none, or nobody that can be read."""
    try:
        check_regular(path)
        return Holder(**json.loads(path.read_bytes()))
    except (UserError, OSError, ValueError, TypeError):
        return None


def _sign(path: Path) -> tuple[int, int] | None:
    """What changes with every sign of life; None where there is no lock."""
    try:
        with open(path) as file:  # opened: a file system of another host then asks for it anew
            found = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _keep(path: Path, own: Holder, lost: Callable[[str], None], ends: threading.Event) -> None:
    """Give a sign every BEAT_SECONDS, as long as the folder is this program's."""
    while not ends.wait(BEAT_SECONDS):
        found = _holder(path)
        if found is not None and found.token != own.token:
            lost(
                f"{path.parent} is in use by {found} now: this process has given no sign for "
                f"{LEASE_SECONDS:.0f} s, and ends so that no two write there"
            )
            return
        try:
            os.utime(path)
        except FileNotFoundError:
            _give_back(path, own)
        except OSError:
            continue  # a file system that does not answer: nor do others see anything there


def _give_back(path: Path, own: Holder) -> None:
    """Somebody has removed the lock of a program that is at work."""
    try:
        with open(path, "x") as file:
            file.write(_text(own))
    except OSError:
        return  # another has it, which the next look finds; or the folder is gone
