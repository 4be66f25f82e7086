"""Worker processes leave Ctrl-C to their parent, from their first moment on."""

import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import signal
from data_tools.parallel import ordered
from tests.data_tools.test_parallel import is_deaf
assert list(ordered(is_deaf, range(3), 2)) == [True] * 3
assert not is_deaf(0)
"""


def is_deaf(_: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_workers_do_not_hear_what_their_parent_answers() -> None:
    words = [sys.executable, "-c", PROGRAM]
    found = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
