"""Evaluations that write knn.jsonl at the same moment: every row is there, and whole."""

import subprocess
import sys
from pathlib import Path

from poa_ds.evaluate import results
from poa_ds.evaluate.results import KnnRow
from poa_ds.model.space import Subnet

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
