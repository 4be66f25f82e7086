"""What a loader process says before it ends, to the process that started it.

PyTorch reports only that it has ended, and does so wherever its main thread happens to be.
"""

import multiprocessing
from multiprocessing.connection import Connection

WAIT_SECONDS = 1.0  # the news of the end may be quicker than the words
_hearing: list[Connection] = []
_words: list[str] = []  # kept: PyTorch may interrupt who has heard them, whose caller asks again


def listen() -> Connection:
    """The end for the processes; what they send there is `heard` by this one."""
    hearing, saying = multiprocessing.Pipe(duplex=False)
    _hearing[:], _words[:] = [hearing], []  # one set of loader processes works at a time
    return saying


def heard() -> str:
    """The first words that have arrived; empty where there are none."""
    try:
        if not _words and _hearing and _hearing[0].poll(WAIT_SECONDS):
            _words.append(_hearing[0].recv())
    except (EOFError, OSError):  # all of them have ended without a word
        pass
    return _words[0] if _words else ""
