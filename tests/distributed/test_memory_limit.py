"""A limit of memory, as batch systems set one: who is killed, what is said, and how it goes on.

What asks for too much is a process beside the run in the same group: the system then kills the one
that is told to be the first, and nothing depends on how much a network takes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from poa_ds.run import exit_status
from tests.distributed.programs.jobs import Job, ranks
from tests.distributed.test_launch import SHORT, launched, trainers
from tests.run.test_training import command, environment, losses
from tests.support.shards import make_shards

pytestmark = pytest.mark.slow

GROUPS = Path("/sys/fs/cgroup")
LIMIT_BYTES = 2 << 30
SECONDS = 60.0
STEPS = 60
ASKS = """
import sys
sys.stdin.read(1)
taken = []
while True:
    taken.append(b"x" * (64 << 20))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "train", 60)
    return root


@pytest.fixture
def group() -> Iterator[Path]:
    """A group of processes with a limit of memory (of version 1 or 2)."""
    version_1 = (GROUPS / "memory").is_dir()
    folder = (GROUPS / "memory" if version_1 else GROUPS) / f"poa_ds_{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made here: {error}")
    try:
        name = "memory.limit_in_bytes" if version_1 else "memory.max"
        if not (folder / name).exists():
            pytest.skip("groups have no limit of memory here")
        (folder / name).write_text(str(LIMIT_BYTES))
        yield folder
    finally:
        deadline = time.monotonic() + SECONDS
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        folder.rmdir()


def kill_for_memory(group: Path, process: psutil.Process) -> None:
    """Let the memory of the group be used up, and that process be the one to go."""
    Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
    with subprocess.Popen([sys.executable, "-c", ASKS], stdin=subprocess.PIPE) as asking:
        for member in (process, *process.children(recursive=True), asking):
            (group / "cgroup.procs").write_text(str(member.pid))
        asking.stdin.write(b"x")
        asking.stdin.flush()
        deadline = time.monotonic() + SECONDS
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        asking.kill()


def words(shards: Path, out: Path, *more: str) -> list[str]:
    options = ("--deepspeed_config", "ds_configs/zero2.json", f"schedule.steps_per_epoch={STEPS}")
    return command(shards, out, *SHORT, *options, *more)[3:]


def ends(job: Job) -> tuple[list[int], float]:
    """Statuses, and the seconds until all had ended."""
    start = time.monotonic()
    return job.statuses(), time.monotonic() - start


def test_a_rank_killed_for_memory_ends_the_other_with_the_cause_and_the_run_continues(
    group: Path, shards: Path, tmp_path: Path
) -> None:
    with ranks(words(shards, tmp_path), tmp_path) as job:
        job.until(f"step {STEPS // 4 + 2}:")
        kill_for_memory(group, psutil.Process(job.processes[1].pid))
        statuses, seconds = ends(job)
    assert statuses == [exit_status.LOST, -9] and seconds < 30
    assert "because the memory was used up" in job.said() and "smaller batches" in job.said()
    with ranks(words(shards, tmp_path), tmp_path) as job:
        assert job.statuses() == [exit_status.DONE] * 2
        assert "continues at step" in job.said()
    assert sorted(losses(tmp_path)) == [*range(1, STEPS + 1)]


def test_a_loader_killed_for_memory_ends_the_run_with_the_cause(
    group: Path, shards: Path, tmp_path: Path
) -> None:
    program = [sys.executable, "-u", "-m", "poa_ds.train"]
    with Job(
        [program + words(shards, tmp_path, "data.workers=2")], [environment()], tmp_path
    ) as job:
        job.until("step 3:")
        [loader, *_] = psutil.Process(job.processes[0].pid).children()
        kill_for_memory(group, loader)
        statuses, seconds = ends(job)
    assert statuses == [exit_status.CRASHED] and seconds < 30
    assert "memory is used up: use fewer data.workers" in job.said()


def test_the_supervisor_names_the_cause_of_a_run_of_one_rank(
    group: Path, shards: Path, tmp_path: Path
) -> None:
    with launched(["--nproc", "1"], shards, tmp_path, "evaluation.queries=") as job:
        job.until("step 3:")
        [rank] = trainers(tmp_path)
        kill_for_memory(group, rank)
        statuses, seconds = ends(job)
    assert statuses == [137] and seconds < 30
    assert "poa-ds launch: meanwhile the system has killed" in job.said()
