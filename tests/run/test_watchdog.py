"""The watchdog of one process; what ranks say of each other: distributed/test_stopping.py."""

import math
import subprocess
import sys
import threading

import pytest

from poa_ds.run import exit_status, watchdog
from poa_ds.run.watchdog import NCCL_SECONDS, WAITS, Watchdog
from tests.distributed.programs.launch import ROOT, environment, free_port

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
    assert done.returncode == exit_status.HUNG, done.stderr
    assert "gives up: no progress" in done.stderr and "in find_spec" in done.stderr


# rank 1, which does not wait, has answered; NCCL's collectives return before they are done
WAITS_FOR_THE_DEVICE = """
import os, time
from functools import partial
from types import SimpleNamespace
import torch
from poa_ds.run import watchdog
from poa_ds.system import dist
from poa_ds.system.stopping import Requests

watchdog.ROLL_CALL_SECONDS = 1.0
port = int(os.environ["MASTER_PORT"])
store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
store.set("poa_ds/roll_call/1", "step 5: waiting for images")
watchdog.Watchdog(Requests(), 1.0).beat("step 5: training")
dist.on_host(SimpleNamespace(tolist=partial(time.sleep, 600)))
"""


def test_who_waits_is_known_although_collectives_return_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAITS_FOR_THE_DEVICE],
        cwd=ROOT,
        env=environment(0, 2, free_port()),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == exit_status.HUNG, done.stderr
    assert "it waits for other ranks" in done.stderr
    assert "do not wait for others: rank 1: step 5: waiting for images" in done.stderr
    assert "no answer" not in done.stderr


class Silent:
    """Nobody asks for a stop."""

    wanted_since = math.inf

    def look(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("timeout_seconds", "slow", "most_seconds", "allowed_seconds"),
    [
        (600, False, math.inf, 600),
        (30, True, math.inf, 600),
        (600, False, NCCL_SECONDS, 540),
        (1800, True, NCCL_SECONDS, 540),
        (30, False, NCCL_SECONDS, 30),
        (0, False, NCCL_SECONDS, math.inf),  # the user wants none
    ],
)
def test_it_speaks_before_nccl_ends_the_rank(
    timeout_seconds: float, slow: bool, most_seconds: float, allowed_seconds: float
) -> None:
    watching = Watchdog(Silent(), timeout_seconds)
    watching.rest()
    watching.most_seconds = most_seconds
    watching.beat("a step", slow=slow)
    assert watching._phase.allowed_seconds == allowed_seconds


def test_what_few_ranks_do_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "512")
    answers = dict.fromkeys(range(512), "step 5: training") | {388: "step 5: waiting for images"}
    answers |= {7: WAITS}
    del answers[2], answers[3]
    assert watchdog._about_others(answers) == [
        "do not wait for others: rank 388: step 5: waiting for images; "
        "ranks 0, 1, 4, 5, 6, 8, 9, 10, ...: step 5: training",
        "no answer from ranks 2, 3: stopped processes, a host that is cut off, or not there yet",
    ]
    assert watchdog._about_others(dict.fromkeys(range(512), WAITS)) == []


@pytest.mark.parametrize("hangs", [False, True])
def test_what_is_saved_stands_behind_its_message_unless_the_disk_hangs_too(
    hangs: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    said: list[object] = []
    never = threading.Event()
    monkeypatch.setattr(watchdog, "leave", said.append)
    monkeypatch.setattr(watchdog, "LAST_WORDS_SECONDS", 0.05 if hangs else 60.0)
    monkeypatch.setattr(watchdog, "_call_roll", lambda answer: [])
    watching = Watchdog(Silent(), 600)
    watching.rest()
    watching.last_words = never.wait if hangs else lambda: said.append("saved is step 3")
    watching._give_up(watching._phase)
    assert said == ([] if hangs else ["saved is step 3"]) + [exit_status.HUNG]
    assert "gives up: no progress" in capsys.readouterr().err
    never.set()
