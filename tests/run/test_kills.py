"""kill -9 at ten random moments of a run: what it leaves in the end is what no kill leaves."""

import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from poa_ds.data.store.index import ShardFolder
from tests.distributed.programs.forks import started
from tests.run.test_training import command, environment, losses, run, shards

__all__ = ["shards"]  # the fixture
KILLS = 10
MORE = (
    *("schedule.steps_per_epoch=24", "checkpoint.every_epochs=0.0834", "evaluation.sizes=32x2"),
    *("data.on_error=replace", "data.max_bad_fraction=0.1"),
)


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """Shards with an image that has to be replaced."""
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    folder = ShardFolder.open(copy / "train")
    with open(copy / "train" / folder.shard(17), "r+b") as file:
        file.seek(int(folder.index[17]["offset"]) + 40)
        file.write(b"damage")
    return copy


def killed(words: list[str], seconds: float, log: Path) -> bool:
    """Whether the run was killed so long after its first step, and not done before."""
    process = started(words, environment(), log)
    while process.is_alive() and not re.search("^(step |done)", log.read_text(), re.MULTILINE):
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def kept(out: Path) -> dict[str, bytes]:
    """Name -> content of the teachers, and the names of the checkpoints."""
    teachers = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("teacher.safetensors")}
    return teachers | {p.name: b"" for p in (out / "checkpoints").iterdir()}


@pytest.mark.slow
def test_ten_kills_change_nothing(damaged: Path, tmp_path: Path) -> None:
    """They hit steps, checkpoints, evaluations and the start of the next attempt."""
    whole, out, rng = tmp_path / "whole", tmp_path / "killed", random.Random(7)
    run(command(damaged, whole, *MORE))
    words, hit = command(damaged, out, *MORE), 0
    for number in range(KILLS):
        hit += killed(words, rng.uniform(0, 0.3), tmp_path / f"output{number}.txt")
    assert hit > KILLS // 2, "the run was done before the kills: it is too short"
    run(words)
    assert losses(out) == losses(whole)
    for name in ("knn.jsonl", "bad_samples.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert len((whole / "bad_samples.jsonl").read_text().splitlines()) > 1
    assert kept(out) == kept(whole) and len(kept(whole)) > 3
