"""Ranks of one machine that were there and are gone; how a run ends then: distributed."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from poa_ds.system.presence import Presence
from tests.distributed.programs.launch import ROOT, environment, free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of sockets are Linux's")
THERE = """
import os, time
from poa_ds.system.presence import Presence
presence = Presence(os.environ)
print("there", flush=True)
time.sleep(600)
"""


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def other(port: int) -> Iterator[subprocess.Popen]:
    """A process that is rank 1 of 3."""
    words = [sys.executable, "-c", THERE]
    with subprocess.Popen(
        words, cwd=ROOT, env=environment(1, 3, port), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"there\n"
        yield process
        process.kill()


def gone(presence: Presence, seconds: float = 20.0) -> list[int]:
    end = time.monotonic() + seconds
    while not (found := presence.gone()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_a_rank_that_was_there_is_missed_and_one_that_never_came_is_not(
    port: int, other: subprocess.Popen
) -> None:
    presence = Presence(environment(0, 3, port))
    assert presence.gone() == []
    other.kill()
    assert gone(presence) == [1]


def test_the_ranks_of_another_run_are_not_looked_at(port: int, other: subprocess.Popen) -> None:
    strangers = [environment(0, 3, free_port()), environment(0, 2, port)]
    found = [Presence(variables) for variables in strangers]
    assert [presence.gone() for presence in found] == [[], []]
    other.kill()
    other.wait()
    assert [presence.gone() for presence in found] == [[], []]


def test_two_processes_in_the_same_place_disturb_none(port: int, other: subprocess.Popen) -> None:
    first, second = (Presence(environment(1, 3, port)) for _ in range(2))
    assert first.gone() == second.gone() == []


def test_a_run_of_one_process_looks_for_nobody() -> None:
    assert Presence(environment(0, 1, 0)).gone() == []
