"""The four lines of a run: their text, and how they come to a real pseudo-terminal."""

from dataclasses import replace
from pathlib import Path

import pytest

from poa_ds.evaluate.results import KnnRow
from poa_ds.run.screen import Screen
from poa_ds.run.standing import Standing, lines
from poa_ds.system.terminal import width
from tests.support.made_runs import protocol
from tests.support.pseudo_terminal import terminal

ROW = {
    "step": 250,
    "loss/total": 7.1234,
    "gradient_norm/backbone": 2.34,
    "gradient_norm/heads": 0.61,
    "schedule/lr": 0.0015,
    "skipped_total": 0.0,
    "health/alarm": 0.0,
    "speed/images_per_second": 31.0,
    "speed/step_ms": 2083.0,
    "speed/data_wait_ms": 41.0,
    "memory/host_gib": 1.94,
}
KNN = KnnRow(
    250,
    protocol(760),
    {"32x2": {20: 71.5}, "64x3": {20: 75.4}, "96x4": {20: 74.3}, "96x2": {20: 69.8}},
    random_weights={"32x2": {20: 62.6}, "64x3": {20: 59.0}, "96x4": {20: 60.0}, "96x2": {20: 60}},
)
HALF = Standing(
    "photos",
    250,
    500,
    row=ROW,
    earlier=ROW | {"step": 200, "loss/total": 7.43},
    seconds_left=720.0,
    evaluation_seconds_left=120.0,
    knn=KNN,
    report_k=20,
    sizes={"small": "32x2", "base": "64x3", "large": "96x4"},
    saved=200,
    judged_from=21,
    report="runs/photos/report.html",
)
BAR = "━" * 15 + "─" * 15
AT_120 = f"""\
photos  step 250/500  50 %  {BAR}  0.48 steps/s  12 min left  (evaluations 2 min)
loss 7.12 (-0.31 in 50 steps)   lr 0.0015   grad 2.3 / 0.6   skipped 0   health ok
k-NN @ 250   4 sizes 69.8 to 75.4 ±3.3 %   gained 8.9 to 16.4   small 71.5   base 75.4   large 74.3
31 img/s   data wait 2 %   memory 1.9 GiB host   checkpoint 200 saved   runs/photos/report.html"""
AT_80 = """\
photos  step 250/500  50 %  ━━━━━━━━━━━━────────────  0.48 steps/s  12 min left
loss 7.12 (-0.31 in 50 steps)   lr 0.0015   grad 2.3 / 0.6   skipped 0
k-NN @ 250   4 sizes 69.8 to 75.4 ±3.3 %   gained 8.9 to 16.4   small 71.5
31 img/s   data wait 2 %   memory 1.9 GiB host   checkpoint 200 saved"""
GOLDEN = {120: AT_120, 80: AT_80}
"""What a terminal of so many columns shows."""


def text(standing: Standing, columns: int, **how: bool) -> list[str]:
    return lines(standing, columns - 1, **({"coloured": False, "ascii_only": False} | how))


@pytest.mark.parametrize("columns", [120, 80])
def test_the_lines_are_these(columns: int) -> None:
    assert "\n".join(text(HALF, columns)) == GOLDEN[columns]


@pytest.mark.parametrize("columns", range(40, 130, 3))
def test_the_lines_are_never_wider_than_the_terminal_and_keep_what_counts(columns: int) -> None:
    named = replace(HALF, name="実験 " * 20, sizes={f"name{i}": "64x3" for i in range(30)})
    for standing in (HALF, named, replace(HALF, row={}, seconds_left=None, knn=None)):
        found = text(standing, columns, coloured=True)
        assert len(found) == 4 and all(0 < width(line) < columns for line in found)
        assert "step 250/500" in found[0] and found[1].startswith("loss")


def test_alarms_are_red_unless_there_are_no_colours_and_wait_until_they_count() -> None:
    alarmed = replace(HALF, row=ROW | {"health/alarm": 2.0})
    assert "\x1b[31mhealth: 2 alarms\x1b[0m" in text(alarmed, 120, coloured=True)[1]
    assert text(alarmed, 120)[1].endswith("   health: 2 alarms")
    assert text(replace(HALF, step=20), 120)[1].endswith("   health: from step 21")


def test_without_unicode_there_is_none() -> None:
    found = "\n".join(text(HALF, 120, ascii_only=True))
    assert found.isascii() and "===============---------------" in found and "+-3.3 %" in found


def test_a_run_before_its_first_row_and_of_one_size() -> None:
    fresh = Standing("photos", 0, 500, judged_from=21)
    assert text(fresh, 80) == [
        "photos  step 0/500  0 %  ──────────────────────────────",
        "loss: after the next row of metrics",
        "k-NN: not measured yet",
        "no checkpoint yet",
    ]
    alone = replace(HALF, knn=replace(KNN, knn={"64x3": {20: 75.4}}))
    assert text(alone, 80)[2] == "k-NN @ 250   1 size 75.4 ±3.1 %   gained 16.4   base 75.4"
    broken = replace(HALF, knn=replace(KNN, knn={}))
    assert text(broken, 80)[2] == "k-NN @ 250: no size has finite features"


def test_texts_from_outside_move_no_cursor() -> None:
    hostile = replace(HALF, name="a\x1b[2J\r\nb", report="r\x1b[H.html")
    assert not any(code in "".join(text(hostile, 120)) for code in "\x1b\r\n")


@pytest.mark.parametrize("columns", [120, 80])
def test_a_terminal_shows_them_below_what_is_printed(columns: int, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    start = replace(HALF, row={}, earlier={}, step=200, knn=None, saved=None, report="")
    with terminal(24, columns) as there:
        screen = Screen(
            *(start, page),
            draws_there=True,
            stream=there.stream,
            environment={"TERM": "xterm", "NO_COLOR": "1"},
        )
        print("$ a command", file=there.stream, flush=True)
        with screen:
            screen.row(HALF.earlier, seconds_left=900.0, evaluation_seconds_left=240.0)
            print("warning: one line", file=there.stream, flush=True)
            screen.saved(200)
            screen.evaluated(KNN)
            screen.row(ROW, seconds_left=720.0, evaluation_seconds_left=120.0)
            shown = there.see()
            wanted = GOLDEN[columns].replace("   runs/photos/report.html", "").splitlines()
            assert shown == ["$ a command", "warning: one line", *[""] * 18, *wanted]
            assert not there.emulator.wrapped
        assert [line for line in there.see() if line] == ["$ a command", "warning: one line"]


def test_a_log_gets_nothing_of_it(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:
        how = {"stream": log, "environment": {"TERM": "xterm"}}
        with Screen(HALF, tmp_path, draws_there=True, **how) as screen:
            screen.row(ROW, seconds_left=1.0, evaluation_seconds_left=0.0)
            assert not screen.replaces_lines
    assert (tmp_path / "log").read_text() == ""
    with terminal(24, 80) as there:  # another rank than the first
        how = {"stream": there.stream, "environment": {"TERM": "xterm"}}
        with Screen(HALF, tmp_path, draws_there=False, **how) as screen:
            screen.step(251)
        assert not any(there.see())
