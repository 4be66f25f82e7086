"""The kernel table of `poa-ds bench gpu` has the lines on which two measurements agree."""

import json
from pathlib import Path

import pytest

from poa_ds.bench.gpu import table


def measured(ours: float, theirs: float, use: str = "triton") -> table.Measured:
    rows = [("eager", 9.0), ("compiled", theirs), ("triton", ours)]
    found = [
        {"comparison": "gelu 64", "contender": name, "milliseconds": ms, "wrong": False}
        for name, ms in rows
    ]
    return table.Measured(
        {"figures": found, "lines": {"gelu 64": ["gelu"]}}, {"gelu": {"use": use}}
    )


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (measured(1.029, 2.0), ""),
        (measured(1.0, 1.941), ""),
        (measured(1.031, 2.0), "gelu 64, ours: 1 ms, then 1.031 ms, 3.1 % apart"),
        (measured(1.0, 1.93), "gelu 64, PyTorch's: 2 ms, then 1.93 ms, 3.5 % apart"),
        (measured(1.0, 2.0, "reference"), "first triton, then reference"),
    ],
)
def test_a_line_of_the_table_needs_two_measurements_that_agree(second: table.Measured, why: str):
    assert table.disagreement("gelu", measured(1.0, 2.0), second) == why


def test_the_written_table_has_the_lines_that_agree_and_keeps_the_others(tmp_path: Path):
    lines = json.loads(table.dispatch.TABLE.read_text())
    chip = table._chip()
    for name, second in (("gelu", 1.0), ("add_ln", 2.0)):
        changed = json.loads(json.dumps(lines))
        changed[chip][name] |= {"use": "triton", "measured": "here"}
        for turn, ms in ((1, 1.0), (2, second)):
            record = {"figures": measured(ms, 3.0).record["figures"], "lines": {"gelu 64": [name]}}
            (tmp_path / f"{name}.{turn}.json").write_text(json.dumps(record))
            (tmp_path / f"{name}.{turn}.table.json").write_text(json.dumps(changed))
    tests, target = tmp_path / "tests.json", tmp_path / "made.json"
    words = [str(tmp_path), str(target), str(tests)]
    for outcome in ({}, {"tests": {"status": "failed"}}):
        tests.write_text(json.dumps(outcome))
        assert table.main(words) == 0
        assert json.loads(target.read_text()) == lines
    assert "have not passed" in target.with_suffix(".decisions.json").read_text()
    tests.write_text(json.dumps({"tests": {"status": "done"}}))
    assert table.main(words) == 0
    written = json.loads(target.read_text())
    assert written[chip]["gelu"]["measured"] == "here"
    assert written[chip]["add_ln"] == lines[chip]["add_ln"]
    decisions = json.loads(target.with_suffix(".decisions.json").read_text())
    assert "100.0 % apart" in decisions["add_ln"] and "twice" in decisions["gelu"]
