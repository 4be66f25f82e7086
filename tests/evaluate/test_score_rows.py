"""evaluations.jsonl, its table, and sizes that are judged by it: protocols are never mixed."""

import argparse
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from poa_ds.cli import main
from poa_ds.evaluate import results, score_rows, score_table
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.system.errors import UserError
from tests.support.teachers import make_teacher

PROTOCOL = {"val": {"images": 1000, "of": 1000}, "crop": 32, "resize": 32, "precision": "fp32"}


def row(size: str, value: float, **changed: object) -> ScoreRow:
    error = results.error(value, 1000)
    own = ScoreRow(
        *("linear", 3, size, "top1", value, error, "val", "held_out"),
        *({"rate": 0.1}, 1.5, PROTOCOL, "2.0"),
    )
    return replace(own, **changed)


def test_what_is_kept_is_read_again_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    rows = [row("32x2", 50.0), row("48x3", 60.0, error=None)]
    for each in rows:
        results.append(path, each)
    assert score_rows.read(path) == rows
    kept = json.loads(path.read_text().splitlines()[0])
    assert kept["protocol_id"] == rows[0].protocol_id and len(kept["protocol_id"]) == 12
    path.write_text(path.read_text().replace("50.0", '"half"'))
    with pytest.raises(UserError, match=r"evaluations\.jsonl, line 1 is damaged: .*half"):
        score_rows.read(path)


def test_names_tell_apart_what_cannot_be_compared() -> None:
    assert row("32x2", 1.0).name == "linear_top1"
    assert row("32x2", 1.0, chosen_by="val").name == "linear_top1_best_on_val"
    assert row("32x2", 1.0, set="v2", kind="logistic").name == "logistic_top1_v2"
    assert row("32x2", 1.0).protocol_id != row("32x2", 1.0, protocol={}).protocol_id


def test_the_table_has_a_line_per_size_and_every_error() -> None:
    rows = [row("32x2", 50.0), row("32x2", 51.0, chosen_by="val"), row("48x3", 60.0)]
    head, names, *lines = score_table.table(rows).splitlines()
    assert "step 3, 1,000 images" in head and "not a published protocol" in head
    assert names.split() == ["size", "linear_top1", "linear_top1_best_on_val", "rate"]
    assert lines[0].split() == [*"32x2 50.00 ± 3.1 % 51.00 ± 3.1 % 0.1".split()]
    assert lines[1].split() == [*"48x3 60.00 ± 3.0 % - 0.1".split()]
    assert len({len(line) for line in (names, *lines)}) == 1
    found = list(csv.DictReader(io.StringIO(score_table.as_csv(rows))))
    assert [line["value"] for line in found] == ["50.0", "51.0", "60.0"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_teacher(tmp_path / "run")


def judged(run: Path, capsys: pytest.CaptureFixture, *words: str) -> list[dict]:
    assert main(["sizes", str(run), "--worth", "linear_top1", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_sizes_of_another_protocol_are_shown_with_a_mark_and_not_judged(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    path = run / "evaluations.jsonl"
    results.append(path, row("48x3", 90.0, protocol={**PROTOCOL, "seed": 1}))
    results.append(path, row("32x2", 60.0, step=2))
    for each in (row("32x2", 50.0), row("32x3", 58.0), row("48x2", 60.0)):
        results.append(path, each)
    found = {r["size"]: r for r in judged(run, capsys)}
    assert found["48x3"]["other"] and found["48x3"]["worth"] == 90.0
    assert [size for size, r in found.items() if r["best"]] == ["32x3"]  # within 3.0 points of 60
    assert [r["size"] for r in judged(run, capsys, "--pareto")] == ["32x2", "32x3", "48x2"]
    assert main(["sizes", str(run), "--worth", "linear_top1"]) == 0
    text = capsys.readouterr().out
    assert "~90.00 ± 1.9 %" in text and "* 32x3" in text and "cannot be compared" in text
    assert "linear_top1: ~ 1,000 images" in text


def test_what_was_not_measured_is_named_with_what_was(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["sizes", str(run), "--worth", "linear_top1"]) == 2
    assert "there is k-NN alone" in capsys.readouterr().err
    results.append(run / "evaluations.jsonl", row("32x2", 50.0))
    assert main(["sizes", str(run), "--worth", "linear_top5"]) == 2
    assert "there are knn, linear_top1" in capsys.readouterr().err
    assert main(["sizes", str(run), "--worth", "linear_top1"]) == 0
    assert f"3 sizes without linear_top1: poa-ds eval linear {run}" in capsys.readouterr().out


def test_rows_are_added_in_every_form_of_output(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    for style in ({"json": True, "csv": False}, {"json": False, "csv": True}):
        score_table.keep([row("32x2", 50.0)], path, argparse.Namespace(**style))
    assert len(score_rows.read(path)) == 2
