"""The rows of knn.jsonl: cut, damaged, dropped."""

from pathlib import Path

import pytest

from poa_ds.evaluate import results
from poa_ds.evaluate.results import KnnRow
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UserError


def test_a_cut_last_row_does_not_count_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "knn.jsonl"
    row = KnnRow.of(3, {"crop": 32}, {Subnet(32, 2): {1: 50.0}}, raw_pixels={1: 20.0})
    results.append(path, row)
    whole = path.read_text()
    path.write_text(whole + whole[:10])
    assert results.read(path) == [row]
    results.append(path, row)
    assert path.read_text() == 2 * whole
    path.write_text(whole[:10])
    results.append(path, row)
    assert path.read_text() == whole
    path.write_text("{}\n" + whole)
    with pytest.raises(UserError, match="line 1 is damaged"):
        results.read(path)


def test_rows_after_a_step_are_dropped_when_a_run_goes_back_to_it(tmp_path: Path) -> None:
    path = tmp_path / "knn.jsonl"
    results.keep_through(path, 5)
    for step in (0, 5, 10):
        results.append(path, KnnRow.of(step, {}, {Subnet(32, 2): {1: 50.0}}))
    results.keep_through(path, 5)
    assert [row.step for row in results.read(path)] == [0, 5]
