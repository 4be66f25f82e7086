"""What a loader process says before it ends, to the process that started it.

PyTorch reports only that it has ended, and does so wherever its main thread happens to be.
"""

import multiprocessing
from multiprocessing.connection import Connection

WAIT_SECONDS = 1.0  # the news of the end may be quicker than the words
_hearing: list[Connection] = []


def listen() -> Connection:
    """The end for the processes; what they send there is `heard` by this one."""
    hearing, saying = multiprocessing.Pipe(duplex=False)
    _hearing[:] = [hearing]  # one set of loader processes works at a time
    return saying


def heard() -> str:
    """The first words that have arrived; empty where there are none."""
    try:
        return _hearing[0].recv() if _hearing and _hearing[0].poll(WAIT_SECONDS) else ""
    except (EOFError, OSError):  # all of them have ended without a word
        return ""
