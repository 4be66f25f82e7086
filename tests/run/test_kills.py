"""kill -9 at ten random moments of a run: what it leaves in the end is what no kill leaves."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from poa_ds.data.store.index import ShardFolder
from tests.distributed.programs.launch import ROOT
from tests.run.test_training import command, environment, losses, shards

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


def killed(words: list[str], seconds: float) -> bool:
    """Whether the run was killed so long after its first step, and not done before."""
    process = subprocess.Popen(
        words,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("step ", "done")):
            break
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


def finish(words: list[str]) -> None:
    done = subprocess.run(
        words, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr


def kept(out: Path) -> dict[str, bytes]:
    """Name -> content of the teachers, and the names of the checkpoints."""
    teachers = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("teacher.safetensors")}
    return teachers | {p.name: b"" for p in (out / "checkpoints").iterdir()}


@pytest.mark.slow
def test_ten_kills_change_nothing(damaged: Path, tmp_path: Path) -> None:
    """They hit steps, checkpoints, evaluations and the start of the next attempt."""
    whole, out, rng = tmp_path / "whole", tmp_path / "killed", random.Random(7)
    finish(command(damaged, whole, *MORE))
    words, hit = command(damaged, out, *MORE), 0
    for _ in range(KILLS):
        hit += killed(words, rng.uniform(0, 0.3))
    assert hit > KILLS // 2, "the run was done before the kills: it is too short"
    finish(words)
    assert losses(out) == losses(whole)
    for name in ("knn.jsonl", "bad_samples.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert len((whole / "bad_samples.jsonl").read_text().splitlines()) > 1
    assert kept(out) == kept(whole) and len(kept(whole)) > 3
