"""Two trainings that want one folder: one has it, the other is told who; a leftover delays none."""

import signal
import subprocess
from pathlib import Path

import pytest

from poa_ds.run import exit_status
from poa_ds.system.lock import NAME
from tests.run.test_training import ROOT, command, environment, losses
from tests.support.shards import make_shards

SHORT = ("schedule.steps_per_epoch=8", "evaluation.queries=")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "train", 60)
    return root


def begin(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        words,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_of_two_runs_that_start_at_once_one_goes_on_undisturbed(
    shards: Path, tmp_path: Path
) -> None:
    words = command(shards, tmp_path, *SHORT)
    runs = [begin(words), begin(words)]
    said = [run.communicate(timeout=240)[0] for run in runs]
    assert sorted(run.returncode for run in runs) == [exit_status.DONE, exit_status.FAILED], said
    first = runs[0].returncode == exit_status.FAILED
    refused, other = said[not first], runs[first]
    assert f"in use by a training, process {other.pid} on" in refused and "since 2" in refused
    assert "Traceback" not in refused and "output_dir=" in refused
    assert sorted(losses(tmp_path)) == [*range(1, 9)]
    assert exit_status.read(tmp_path) == exit_status.Ended(exit_status.DONE, 8)
    assert not (tmp_path / NAME).exists()


def test_a_run_is_refused_while_another_is_at_work_and_goes_on_after_its_end(
    shards: Path, tmp_path: Path
) -> None:
    """Its end may be any: here it is killed, and what it left is taken over with a word."""
    words = command(shards, tmp_path, *SHORT)
    with begin(words) as first:
        for line in first.stdout:
            if line.startswith("step 3:"):
                break
        first.send_signal(signal.SIGSTOP)
        with begin(words) as second:
            said = second.communicate(timeout=240)[0]
        assert second.returncode == exit_status.FAILED
        assert f"process {first.pid} on" in said
        first.kill()
    with begin(words) as third:
        said = third.communicate(timeout=240)[0]
    assert third.returncode == exit_status.DONE, said
    assert f"process {first.pid} on" in said and "taken over" in said
    assert sorted(losses(tmp_path)) == [*range(1, 9)]
