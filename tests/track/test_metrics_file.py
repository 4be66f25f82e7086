"""metrics.jsonl and bad_samples.jsonl: whole lines, none twice, cut back to where a run resumes."""

import json
import os
from pathlib import Path

import pytest

from poa_ds.model.space import Subnet
from poa_ds.run import bad_samples
from poa_ds.system.errors import UserError
from poa_ds.track.metrics_file import (
    Floors,
    MetricsFile,
    knn_curves,
    knn_values,
    read_rows,
    rows_after,
    values_of,
)

SMALL, LARGE = Subnet(32, 2), Subnet(96, 12)


def written(path: Path, steps: int) -> None:
    file = MetricsFile(path, keep_through=None)
    for step in range(steps):
        file.append(step, {"loss": 10.0 - step})
    file.close()


def test_every_row_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, keep_through=None)
    row = file.append(3, {"loss": 1.5, "lr": 1e-3})
    assert read_rows(path) == [row] and values_of(row) == {"loss": 1.5, "lr": 1e-3}
    assert row["step"] == 3 and row["time"] > 1.6e9


def test_a_resumed_file_is_cut_back_and_repeated_points_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 8)
    file = MetricsFile(path, keep_through=4)
    assert values_of(file.append(4, {"loss": 99.0})) == {}
    assert values_of(file.append(4, {"loss": 99.0, "lr": 2.0})) == {"lr": 2.0}
    file.append(5, {"loss": 5.0})
    rows = read_rows(path)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert losses == [(step, 10.0 - step) for step in range(6)]
    assert not list(tmp_path.glob("*.partial"))


def test_a_new_run_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 3)
    MetricsFile(path, keep_through=None).append(0, {"loss": 1.0})
    assert [row["loss"] for row in read_rows(path)] == [1.0]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-6])
    assert [row["step"] for row in read_rows(path)] == [0, 1]
    file = MetricsFile(path, keep_through=9)
    file.append(2, {"loss": 8.0})
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2]


def test_a_checkpoint_brings_all_rows_onto_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, synced = MetricsFile(tmp_path / "metrics.jsonl", keep_through=None), []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    file.append(1, {"loss": 1.0})
    assert synced == []  # not at every step
    file.sync()
    assert synced == [(tmp_path / "metrics.jsonl").stat().st_ino]


def test_bad_samples_are_cut_back_like_metrics(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    bad_samples.keep_through(path, -1)
    for step in (1, 3, 3, 7):
        bad_samples.append(path, step, [("a.tar", f"image_{step}", "cut"), ("b.tar", "x", "cut")])
    lines = path.read_text().splitlines(keepends=True)
    with open(path, "a") as file:
        file.write(lines[0][:20])  # killed while it was written
    bad_samples.keep_through(path, 3)
    assert path.read_text() == "".join(lines[:6])
    row = {"step": 1, "shard": "a.tar", "key": "image_1", "cause": "cut"}
    assert json.loads(lines[0]) == row
    bad_samples.keep_through(path, -1)
    assert path.read_text() == ""


def test_damage_elsewhere_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_rows(path)


ODD_ROWS = [
    *("[]", "3", "null", '"a"', "{}", '{"step": "1", "time": 0}', '{"step": -1, "time": 0}'),
    *('{"step": 1, "time": 0, "loss": "x"}', '{"step": 1, "time": 0, "loss": NaN}'),
    *('{"step": 1, "time": 0, "loss": null}', '{"step": 1, "time": "now"}', "[" * 100_000),
    *('{"step": 1, "time": 0, "loss": 1e999}', '{"step": 9' + 40 * "9" + "}", "\\xff"),
]


@pytest.mark.parametrize("row", ODD_ROWS, ids=range(len(ODD_ROWS)))
def test_a_row_of_any_other_kind_is_named_by_whoever_reads_it(row: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0, "time": 1.0}}\n\n{row}\n{{"step": 2, "time": 1.0}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 3 is damaged: ") as error:
        read_rows(path)
    assert len(str(error.value)) < len(str(tmp_path)) + 200
    with pytest.raises(UserError, match=r"metrics\.jsonl, the line from byte 26 on: "):
        list(rows_after(path))


def test_knn_values_and_curves_are_each_other_s_inverse() -> None:
    floors = Floors(27.0, {SMALL: 50.0})
    first = knn_values({SMALL: {20: 51.0, 100: 50.5}, LARGE: {20: 55.0}}, floors, report_k=20)
    second = knn_values({SMALL: {20: 61.0}}, Floors(), report_k=20)
    rows = [{"step": 0, "time": 0.0, **first}, {"step": 9, "time": 0.0, **second}]
    curves, found = knn_curves(json.loads(json.dumps(rows)))
    assert curves == {SMALL: [(0, 51.0), (9, 61.0)], LARGE: [(0, 55.0)]}
    assert found == floors
