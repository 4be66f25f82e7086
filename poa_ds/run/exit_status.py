"""How a training program ends: its exit statuses, and the record that a run leaves in its folder.

Launchers do not hand statuses on reliably (deepspeed ends with 1 after a signal, with 0 when its
second process is killed): `poa-ds launch` believes the record. There is none after a fault.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from poa_ds.system.errors import UserError
from poa_ds.system.files import replace_text
from poa_ds.system.json_text import parse
from poa_ds.system.regular import check_regular
from poa_ds.system.run_folder import RunFolder

DONE, FAILED, WRONG_USE = 0, 1, 2
CRASHED = 70  # this rank failed (EX_SOFTWARE)
STOPPED = 75  # asked to stop, and saved (EX_TEMPFAIL)
LOST = 76  # another rank ended; its message says why (EX_PROTOCOL)
HUNG = 124  # as timeout(1) reports it
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
TABLE = f"""exit status:
  0    done
  1    a mistake that the message names, such as damaged data or a full disk
  2    wrong use: the command or the recipe
  {CRASHED}   this rank failed; its message names the step and the sub-networks
  {STOPPED}   SIGTERM, SIGUSR1, SIGHUP or the end of the launcher: saved, the same command
       continues
  {LOST}   another rank ended, and says why
  {HUNG}  no progress within step_timeout_seconds
  {INTERRUPTED}  Ctrl-C, nothing saved; 128 + n: a second signal n, nothing saved"""


def of_signal(number: int) -> int:
    """The status of a process that a signal ended, as shells report it."""
    return 128 + number


@dataclass(frozen=True)
class Ended:
    """status: DONE or STOPPED. reason: what asked for the stop."""

    status: int
    step: int
    reason: str = ""


def write(folder: Path, record: Ended) -> None:
    """Leave the record in a run's folder."""
    replace_text(RunFolder(folder).ended, json.dumps(asdict(record)) + "\n")


def read(folder: Path) -> Ended | None:
    """The record of a run that came to its end or was stopped; None while it runs."""
    try:
        check_regular(RunFolder(folder).ended)
        found = Ended(**parse(RunFolder(folder).ended.read_bytes()))
    except (UserError, OSError, ValueError, TypeError):  # none, or what stands there is none
        return None
    return found if isinstance(found.status, int) else None


def mark(folder: Path) -> tuple[int, int] | None:
    """What tells the record that is there from a later one; None where there is none."""
    try:
        found = RunFolder(folder).ended.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def forget(folder: Path) -> None:
    """Remove the record: the run begins again."""
    try:
        RunFolder(folder).ended.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{RunFolder(folder).ended} cannot be removed: {error.strerror}") from error
