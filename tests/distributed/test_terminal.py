"""A training of two ranks on a real pseudo-terminal: its foot, and what is left above it."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from poa_ds.system.processes import Group
from tests.distributed.programs.jobs import PATIENCE_SECONDS, arguments
from tests.distributed.programs.launch import free_port
from tests.run.test_training import environment
from tests.support.pseudo_terminal import Terminal, terminal
from tests.support.shards import make_shards

STEPS = 8
pytestmark = pytest.mark.slow


def until(there: Terminal, pattern: str) -> list[str]:
    """What the screen shows as soon as a line of it fits."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not any(re.search(pattern, line) for line in there.see()):
        assert time.monotonic() < end, "\n".join(there.emulator.everything())
        time.sleep(0.1)
    return there.emulator.shown()


def test_two_ranks_share_a_terminal_and_one_draws_the_foot(tmp_path: Path) -> None:
    make_shards(tmp_path / "train", 60)
    make_shards(tmp_path / "val", 21)
    out = tmp_path / "run"
    words = arguments(tmp_path, out, f"schedule.steps_per_epoch={STEPS}")
    program = [str(Path(sys.executable).with_name("deepspeed")), "-q", "--num_gpus", "2"]
    place = ["--master_port", str(free_port()), "--module", "poa_ds.train"]
    settings = environment() | {"TERM": "xterm", "NO_COLOR": "1"}
    with terminal(40, 80) as there:
        group = Group([*program, *place, *words], settings, output=there.stream)
        try:
            *_, course, losses, knn, speed = until(there, r"^loss \d.*skipped 0")
            os.write(there.stream.fileno(), b"from a library\r\n")
            left = until(there, "^take it out")
            assert group.wait(PATIENCE_SECONDS)
        finally:
            group.signal(signal.SIGKILL)
        everything = there.emulator.everything()
    assert group.status() == 0, "\n".join(everything)
    assert re.match(rf"photos  step \d/{STEPS}  \d+ %  ", course), course
    assert losses.startswith("loss ") and knn.startswith("k-NN @") and "data wait" in speed
    assert (there.emulator.top, there.emulator.bottom) == (0, 39)
    assert "from a library" in everything and f"done: {STEPS} steps; results in" in "".join(left)
    foot = r"photos  step|loss |k-NN @|.*data wait|step \d+: loss"
    assert not [line for line in everything if re.match(foot, line)]
