"""A clock that is set back while a run is at work, and stays so when it continues.

Of Python's programs alone, by a module that each of them imports at its start.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from poa_ds.checkpoint import folders
from poa_ds.run import exit_status
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.metrics_file import read_rows
from tests.run.test_training import ROOT, command, environment, losses
from tests.support.mlflow_runs import recorded, steps
from tests.support.shards import make_shards

pytestmark = pytest.mark.slow

DAY_SECONDS = 86400
SETS_BACK = f"""
import os, time
_time, _time_ns = time.time, time.time_ns
def back():
    return {DAY_SECONDS} if os.path.exists(os.environ["CLOCK_IS_BACK"]) else 0
time.time = lambda: _time() - back()
time.time_ns = lambda: _time_ns() - 10**9 * back()
"""
MORE = ("checkpoint.every_epochs=0.25", "evaluation.queries=", "checkpoint.background=false")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "train", 60)
    return root


def test_a_run_does_not_care(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SETS_BACK)
    flag, out = tmp_path / "back", tmp_path / "run"
    variables = environment() | {"CLOCK_IS_BACK": str(flag), "PYTHONUNBUFFERED": "1"}
    variables["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{variables['PYTHONPATH']}"

    def begin(folder: Path, *more: str) -> subprocess.Popen:
        return subprocess.Popen(
            command(shards, folder, *MORE, *more),
            env=variables,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    with begin(tmp_path / "usual") as usual:
        assert usual.communicate(timeout=300)[0] and usual.returncode == exit_status.DONE
    with begin(out, "tracking=mlflow") as first:
        for line in first.stdout:
            if line.startswith("step 4:"):
                flag.touch()
            if line.startswith("step 10:"):
                first.send_signal(signal.SIGKILL)
                break
    with begin(out, "tracking=mlflow") as second:
        said = second.communicate(timeout=300)[0]
    assert second.returncode == exit_status.DONE, said
    assert "continues at step 9" in said

    assert losses(out) == losses(tmp_path / "usual")
    rows = [row for row in read_rows(RunFolder(out).metrics) if "speed/step_ms" in row]
    assert len(rows) == 12 and all(0 < row["speed/step_ms"] < 60_000 for row in rows)
    assert rows[-1]["time"] < rows[0]["time"]  # it was set back
    newest = folders.newest(RunFolder(out).checkpoints)
    assert newest is not None and newest.name == "step00000012"
    run = recorded(f"sqlite:///{out}/mlflow.db", "photos")["photos"]
    assert run.status == "FINISHED" and steps(run, "loss/total") == [*range(1, 13)]
