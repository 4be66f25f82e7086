"""Parts of a run that may not be read, and a folder that may not be written: one sentence names it.

root may everything: it gives that up for these programs.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run.test_training import ROOT, TINY, environment
from tests.support.shards import make_shards

RUN = Path(__file__).parent / "run_of_61a1063" / "run"
OBEYS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def slow(*words: str) -> object:
    return pytest.param(*words, marks=pytest.mark.slow)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of a run whose rights a test may take away."""
    if not os.geteuid() and not shutil.which("setpriv"):
        pytest.skip("root may read everything, and there is no setpriv to give that up")
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def said(*words: str | Path, module: str = "poa_ds.cli") -> tuple[int, str]:
    """Status and output of a program that obeys the rights of files."""
    first = [] if os.geteuid() else OBEYS
    done = subprocess.run(
        [*first, sys.executable, "-m", module, *map(str, words)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("part", "command"),
    [
        ("teacher", "sizes"),
        slow("teacher/step00000008", "sizes"),
        ("teacher/step00000008/teacher.safetensors", "sizes"),
        slow("teacher/step00000008/config.json", "sizes"),
        slow("teacher/latest", "sizes"),
        slow("knn.jsonl", "sizes"),
        ("checkpoints", "checkpoint inspect"),
        slow("checkpoints/step00000008/manifest.json", "checkpoint inspect"),
        slow("checkpoints/step00000008/shard-00000.safetensors", "checkpoint inspect"),
        slow("metrics.jsonl", "mlflow-sync"),
        slow("config.yaml", "mlflow-sync"),
        slow(".", "sizes"),
    ],
)
def test_a_part_that_may_not_be_read_is_named(part: str, command: str, run: Path) -> None:
    (run / part).chmod(0)
    try:
        status, text = said(*command.split(), run)
    finally:
        (run / part).chmod(0o700)
    assert status in (1, 2)
    assert Path(part).name in text and "Permission denied" in text


@pytest.mark.parametrize("command", [slow("mlflow-sync"), "eval knn"])
def test_a_run_that_may_not_be_written_is_named(command: str, run: Path, tmp_path: Path) -> None:
    words: list[str | Path] = []
    if command == "eval knn":
        make_shards(tmp_path / "train", 60)
        make_shards(tmp_path / "val", 21)
        words = ["--sizes", "32x2", "--bank", tmp_path / "train", "--queries", tmp_path / "val"]
    for path in (run, *run.iterdir()):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        status, text = said(*command.split(), run, *words)
    finally:
        run.chmod(0o700)
    assert status == 1 and str(run) in text, text
    assert command != "eval knn" or "32x2" in text  # what it has found is told first


@pytest.mark.slow
def test_a_training_names_the_folder_that_it_may_not_write(run: Path) -> None:
    run.chmod(0o500)
    words = ["--config", "ds_configs/photos.yaml", *TINY, f"output_dir={run}"]
    status, text = said(*words, module="poa_ds.train")
    assert status == 1 and f"{run}/lock.json cannot be written: Permission denied" in text
