"""The watchdog of one process; what ranks say of each other: distributed/test_stopping.py."""

import subprocess
import sys

from poa_ds.run import exit_status as ended
from tests.distributed.programs.launch import ROOT

HANGS_IN_AN_IMPORT = """
import sys, threading, time
from poa_ds.run import watchdog
from poa_ds.system.stopping import Requests

class Hangs:
    def find_spec(self, name, path, target=None):
        if name == "torch" and threading.current_thread() is threading.main_thread():
            time.sleep(600)  # a file system that does not answer

watchdog.SLOW_SECONDS, watchdog.ASKING_SECONDS = 1.0, 2.0
watchdog.Watchdog(Requests(), 1.0)
sys.meta_path.insert(0, Hangs())
import torch
"""


def test_a_rank_that_hangs_in_an_import_ends() -> None:
    """The roll call needs the same module, and its import waits for the other thread's."""
    words = [sys.executable, "-c", HANGS_IN_AN_IMPORT]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == ended.HUNG, done.stderr
    assert "gives up: no progress" in done.stderr and "in find_spec" in done.stderr
