"""events.jsonl is whole after kills, says what is wrong with it, and never ends a run."""

from pathlib import Path

import pytest

from poa_ds.system.errors import UserError
from poa_ds.system.events import Events, read


def told(path: Path) -> list[tuple[int, str, str]]:
    return [(event.step, event.kind, event.text) for event in read(path)]


def test_a_run_that_goes_on_adds_to_what_is_there(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    Events(path, fresh=True, writes=True).append(0, "start", "2 ranks")
    Events(path, fresh=False, writes=True).append(40, "resume", "4 ranks")
    assert told(path) == [(0, "start", "2 ranks"), (40, "resume", "4 ranks")]
    Events(path, fresh=True, writes=True).append(0, "start")
    assert told(path) == [(0, "start", "")]


def test_a_line_that_a_kill_cut_short_is_replaced(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    events = Events(path, fresh=True, writes=True)
    events.append(0, "start")
    with path.open("a") as file:
        file.write('{"step": 4')
    assert told(path) == [(0, "start", "")]
    events.append(9, "alarm", "x")
    assert told(path) == [(0, "start", ""), (9, "alarm", "x")]


def test_other_ranks_write_nothing(tmp_path: Path):
    Events(tmp_path / "events.jsonl", fresh=True, writes=False).append(0, "start")
    assert not (tmp_path / "events.jsonl").exists()
    assert read(tmp_path / "events.jsonl") == []


def test_a_disk_that_fails_is_a_line(tmp_path: Path, capsys):
    Events(tmp_path / "nowhere" / "events.jsonl", fresh=True, writes=True).append(7, "alarm")
    assert "does not have `alarm` at step 7: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    ["{}", '{"step": 1, "time": 1.0, "kind": "odd", "text": ""}', '{"step": -1}', "[]", "\xff"],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str):
    (tmp_path / "events.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="line 1 is damaged"):
        read(tmp_path / "events.jsonl")
