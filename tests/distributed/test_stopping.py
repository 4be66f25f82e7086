"""Real ranks that are signalled, killed, held or given damaged images: how they end, what they say.

Without a launcher: it would end the other ranks, and hide how they end by themselves.
"""

import json
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from poa_ds.data.store.index import ShardFolder
from poa_ds.run import exit_status
from tests.distributed.programs.jobs import Job, arguments, ranks
from tests.run.test_training import losses
from tests.support.shards import make_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "train", 60)
    make_shards(root / "val", 21)
    return root


SHORT = ("schedule.steps_per_epoch=8", "checkpoint.every_epochs=1", "evaluation.every_epochs=0.5")


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    with ranks(arguments(shards, out, *SHORT), out) as job:
        assert job.statuses() == [0, 0], job.said()
    return out


def saved_step(out: Path) -> int:
    return int((out / "checkpoints" / "latest").read_text().strip().removeprefix("step"))


def test_a_signal_to_one_rank_stops_and_saves_on_all(shards: Path, tmp_path: Path) -> None:
    with ranks(arguments(shards, tmp_path, "evaluation.queries="), tmp_path) as job:
        job.until("step 2:")
        job.signal(signal.SIGTERM, 1)
        asked = time.monotonic()
        assert job.statuses() == [exit_status.STOPPED] * 2
        assert time.monotonic() - asked < 30
        record = exit_status.read(tmp_path)
        assert record == exit_status.Ended(exit_status.STOPPED, saved_step(tmp_path), "SIGTERM")
        assert record.step >= 2 and sorted(losses(tmp_path)) == [*range(1, record.step + 1)]
        assert f"stopped by SIGTERM, saved at step {record.step}" in job.said()
        assert "Traceback" not in job.said(0) + job.said(1)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["step 3:", "processes", "step 4:"])
def test_a_stopped_run_continues_bit_for_bit(
    when: str, undisturbed: Path, shards: Path, tmp_path: Path
) -> None:
    """Signals reach the ranks one after the other: in a step, in the first evaluation, in a later.

    Evaluations go image by image, so that they last.
    """
    words = arguments(shards, tmp_path, *SHORT, "evaluation.batch_size=1")
    with ranks(words, tmp_path) as job:
        job.until(when)
        job.signal(signal.SIGUSR1, 0)
        time.sleep(0.5)
        job.signal(signal.SIGUSR1, 1)
        assert job.statuses() == [exit_status.STOPPED] * 2, job.said()
    stopped = exit_status.read(tmp_path)
    assert stopped.step < 8 and (when != "processes" or stopped.step == 0)
    with ranks(words, tmp_path) as job:
        assert job.statuses() == [0, 0], job.said()
    assert exit_status.read(tmp_path) == exit_status.Ended(exit_status.DONE, 8)
    assert losses(tmp_path) == losses(undisturbed)
    rows = [json.loads(line) for line in (tmp_path / "knn.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 4, 8]


@pytest.mark.slow
def test_a_second_signal_ends_a_rank_at_once_although_it_waits_for_others(
    shards: Path, tmp_path: Path
) -> None:
    with ranks(arguments(shards, tmp_path), tmp_path) as job:
        job.until("step 2:")
        job.signal(signal.SIGSTOP, 1)
        time.sleep(1)
        job.signal(signal.SIGTERM, 0)
        job.signal(signal.SIGTERM, 0)  # a launcher's repetition: not a second one
        time.sleep(4)
        assert job.processes[0].poll() is None
        job.signal(signal.SIGTERM, 0)
        assert job.processes[0].wait(timeout=20) == 128 + signal.SIGTERM
        assert "rank 0 on" in job.said() and "asked a second time" in job.said()
    assert not (tmp_path / "checkpoints" / "latest").exists()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    "moment", ["it is there", pytest.param("torch is there", marks=pytest.mark.slow)]
)
def test_a_rank_that_is_killed_during_set_up_is_missed_in_seconds(
    victim: int, moment: str, shards: Path, tmp_path: Path
) -> None:
    with ranks(arguments(shards, tmp_path), tmp_path) as job:
        process = psutil.Process(job.processes[victim].pid)
        while "MASTER_PORT" not in process.environ():  # it is not its own program yet
            time.sleep(0.01)
        name = f"@poa_ds/127.0.0.1:{process.environ()['MASTER_PORT']}:2/{victim}\n"
        signs = {
            # a line for its own socket, and one for the other rank's connection to it
            "it is there": lambda: Path("/proc/net/unix").read_text().count(name) > 1,
            "torch is there": lambda: any("libtorch_cpu" in m.path for m in process.memory_maps()),
        }
        while not (signs["it is there"]() and signs[moment]()):
            time.sleep(0.01)
        job.signal(signal.SIGKILL, victim)
        began = time.monotonic()
        assert job.processes[1 - victim].wait(timeout=120) == exit_status.LOST
        assert time.monotonic() - began < 60  # a busy machine
        assert f"rank {victim} ended during set-up, see its message" in job.said(1 - victim)


@pytest.mark.slow
@pytest.mark.parametrize("held", [0, 1])
def test_a_rank_that_hangs_is_noticed_in_time_and_named(
    held: int, shards: Path, tmp_path: Path
) -> None:
    """Rank 0 also keeps the store by which ranks find each other."""
    other = 1 - held
    with ranks(arguments(shards, tmp_path, "step_timeout_seconds=10"), tmp_path) as job:
        job.until("step 2:")
        job.signal(signal.SIGSTOP, held)
        began = time.monotonic()
        assert job.processes[other].wait(timeout=120) == exit_status.HUNG
        assert time.monotonic() - began < 10 + 20 + 15  # the limit, the roll call, a busy machine
        said = job.said(other)
    assert said.count("gives up") == 1 and "no progress for 10 s" in said
    assert f"rank {other} on" in said and re.search("sub-networks (32|48)x[23], images", said)
    assert ("no answer from rank 1" if held else "rank 0 does not answer") in said
    assert "it waits for other ranks" in said and "its main thread" in said
    assert ("the same command" in said) == (other == 0)  # rank 0 says what is saved


def loaders(job: Job, rank: int) -> list[psutil.Process]:
    return psutil.Process(job.processes[rank].pid).children()


@pytest.mark.slow
def test_a_rank_that_raises_says_why_and_where_and_the_other_points_to_it(
    shards: Path, tmp_path: Path
) -> None:
    with ranks(arguments(shards, tmp_path), tmp_path) as job:
        job.until("step 2:")
        for loader in loaders(job, 1):
            loader.kill()
        assert job.statuses() == [exit_status.LOST, exit_status.CRASHED]
        assert "Traceback" in job.said(1) and "DataLoader worker" in job.said(1)
        assert "the memory is used up: use fewer data.workers" in job.said(1)
        assert "rank 1 on" in job.said(1) and "sub-networks" in job.said(1)
        assert "another rank ended, see its message" in job.said(0)
        assert "Traceback" not in job.said(0)


@pytest.mark.slow
def test_a_damaged_image_names_rank_shard_key_and_step(shards: Path, tmp_path: Path) -> None:
    make_shards(tmp_path / "train", 60)
    folder = ShardFolder.open(tmp_path / "train")
    victim, row = folder.path / folder.shard(17), folder.index[17]
    content = bytearray(victim.read_bytes())
    content[int(row["offset"]) + int(row["size"]) // 2] ^= 0xFF
    victim.write_bytes(content)
    more = ("data.on_error=raise", "evaluation.queries=", f"data.train={tmp_path}/train")
    with ranks(arguments(shards, tmp_path, *more), tmp_path) as job:
        assert sorted(job.statuses()) == [1, exit_status.LOST]
        bad = next(r for r in (0, 1) if job.processes[r].returncode == 1)
        assert f"{victim}, sample {folder.key(17)}: damaged" in job.said(bad)
        assert "in step" in job.said(bad) and "sub-networks" in job.said(bad)
        assert bad == 0 or "rank 1: error" in job.said(1)
        assert "another rank ended" in job.said(1 - bad)


@pytest.mark.slow
def test_loader_processes_of_a_stopping_rank_go_on_working(shards: Path, tmp_path: Path) -> None:
    """Launchers signal all processes below a rank; those of a dead rank end by themselves."""
    with ranks(arguments(shards, tmp_path), tmp_path) as job:
        job.until("step 2:")
        below = [loaders(job, 0), loaders(job, 1)]
        assert all(below)
        for loader in below[0]:
            loader.send_signal(signal.SIGTERM)
            loader.send_signal(signal.SIGUSR1)
        job.until("step 20:")
        job.signal(signal.SIGKILL, 1)
        assert job.statuses() == [exit_status.LOST, -signal.SIGKILL]
        gone, alive = psutil.wait_procs(below[0] + below[1], timeout=30)
        assert len(gone) == len(below[0] + below[1]) and not alive
