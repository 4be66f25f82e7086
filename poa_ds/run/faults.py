"""How a rank leaves that cannot go on: which one says why, and with which status each ends."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from typing import NoReturn

from poa_ds.run import exit_status as ended
from poa_ds.system.console import say

# the launcher looks at its ranks once a second and ends with the status of one that has ended:
# that must be the rank that knows the cause
LOST_PAUSE_SECONDS = 5.0


def name() -> str:
    """This rank and its host, in words."""
    return f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"


def report_and_status(error: Exception, place: str) -> int:
    """Says what failed, at `place`, and gives the exit status: after an error nobody expected."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises for a dead loader, again
    if not _is_lost(error):
        text = "".join(traceback.format_exception(error))
        cause = f"{type(error).__name__}: {error}"
        say(f"{text}poa_ds.train: {name()} failed, {place}: {cause}")
        return ended.CRASHED
    cause = " ".join(str(error).split())[:160]
    say(f"poa_ds.train: {name()}: another rank ended, see its message; {place} ({cause})")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # the launcher may end the pause
    time.sleep(LOST_PAUSE_SECONDS)
    return ended.LOST


def _is_lost(error: Exception) -> bool:
    """Whether a collective failed, which tells of another rank and not of this one."""
    if not isinstance(error, RuntimeError):
        return False
    import torch  # is there: what else would raise it

    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def leave(number: int) -> NoReturn:
    """End this process at once: no thread, loader process or lost connection holds it up."""
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(number)
