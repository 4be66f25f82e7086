"""Evaluations at the same moment: every row is there and whole, no work is done by two."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poa_ds.cli import main
from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.results import KnnRow
from poa_ds.evaluate.segmentation.training import Training
from poa_ds.model.space import Subnet
from poa_ds.system import lock
from tests.support.masked import make_shapes
from tests.support.teachers import make_teacher

ROOT = Path(__file__).parents[2]
PROCESSES, ROWS = 3, 100
APPENDS = """
import sys
from pathlib import Path
from poa_ds.evaluate import results
from poa_ds.model.space import Subnet
path, first, rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
note = {"about": "x" * 20_000}  # more than one write takes
for number in range(first, first + rows):
    results.append(path, results.KnnRow.of(number, note, {Subnet(32, 2): {1: 50.0}}))
"""


def appending(path: Path, first: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", APPENDS, str(path), str(first), str(ROWS)], cwd=ROOT
    )


def test_rows_of_several_evaluations_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "knn.jsonl"
    writing = [appending(path, ROWS * number) for number in range(PROCESSES)]
    assert [process.wait(120) for process in writing] == [0] * PROCESSES
    assert sorted(row.step for row in results.read(path)) == [*range(PROCESSES * ROWS)]


def test_a_run_that_goes_back_meanwhile_drops_no_row_of_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "knn.jsonl"
    late = KnnRow.of(10**6, {}, {Subnet(32, 2): {1: 50.0}})
    results.append(path, late)
    with appending(path, 0) as writing:
        while writing.poll() is None:
            results.append(path, late)
            results.keep_through(path, late.step - 1)
    assert writing.returncode == 0
    assert [row.step for row in results.read(path)] == [*range(ROWS)]


def segmentation(run: Path, *more: object) -> int:
    places = ("--layout", "folder", "--train", run.parent / "train", "--val", run.parent / "val")
    short = ("--sizes", "32x2", "--crop", 32, "--steps", 4, "--batch", 2, "--workers", 0)
    return main([str(word) for word in ("eval", "segmentation", run, *places, *short, *more)])


def test_two_that_are_the_same_do_not_work_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The second is refused by name, one with other numbers is not; what a kill leaves is taken."""
    make_shapes(tmp_path / "train", 6, side=32)
    make_shapes(tmp_path / "val", 3, first=100, side=32)
    run, learn, statuses = make_teacher(tmp_path / "run"), Training.learn, []

    def meanwhile(self: Training, step: int, blocks: list) -> None:
        if step == 1 and not statuses:
            [name] = (path.name for path in run.glob("*_lock.json"))
            shutil.copy(run / name, run.parent / name)
            statuses.append(segmentation(run))
            statuses.append(segmentation(run, "--steps", 3))
        learn(self, step, blocks)

    monkeypatch.setattr(Training, "learn", meanwhile)
    assert segmentation(run) == 0 and statuses == [1, 0]
    said = capsys.readouterr().err
    assert f"in use by the same eval segmentation, process {os.getpid()} on" in said
    rows = score_rows.read(run / "evaluations.jsonl")
    assert [row.protocol["steps"] for row in rows] == [3] * 3 + [4] * 3
    assert {path.name for path in run.iterdir()} == {"teacher", "evaluations.jsonl"}
    [left] = run.parent.glob("*_lock.json")
    holder = json.loads(left.read_text()) | {"started": "0"}  # that number, long ago
    (run / left.name).write_text(json.dumps(holder))
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)
    assert segmentation(run) == 0 and "taken over" in capsys.readouterr().err
