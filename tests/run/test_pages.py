"""The page that a training writes: there when it should be, cheap, and never the end of a run."""

import signal
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from poa_ds.recipe.tree import Recipe
from poa_ds.run import pages
from poa_ds.run.pages import Pages
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.tracker import Tracker
from tests.support.made_runs import made_run

SILENT = Tracker.silent(Recipe())
PATIENCE_SECONDS = 120.0


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def monotonic(self) -> float:
        return self.now


def test_pages_cost_less_than_a_hundredth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of 7 s, evaluations every 60 s: the first one and then none for 700 s."""
    clock, begun = Clock(), []
    monkeypatch.setattr(pages, "time", clock)
    written = Pages(tmp_path, SILENT, writes=True)

    class Process:
        returncode = 0

        def communicate(self) -> tuple[bytes, bytes]:
            clock.now += 7
            return b"", b""

    def begin(priority: int) -> None:
        begun.append(clock.now)
        written._watch(Process())

    monkeypatch.setattr(written, "_begin", begin)
    for _ in range(100):
        clock.now += 60
        written.write()
    gaps = [after - before for before, after in pairwise(begun)]
    assert begun[0] == 5000 + 120  # the first one is taken to need a second
    assert len(gaps) == 8 and all(700 < gap < 700 + 7 + 60 for gap in gaps)


def test_the_last_page_shows_the_end_and_is_written_once(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", evaluations=1)
    RunFolder(folder).ended.write_text('{"status": 0, "step": 400}')
    written = Pages(folder, SILENT, writes=True)
    written.write()  # nothing is due so early
    assert not RunFolder(folder).report.exists()
    written.last(PATIENCE_SECONDS)
    page = RunFolder(folder).report
    assert '"ended":"finished"' in page.read_text("utf-8")
    page.unlink()
    written.last(PATIENCE_SECONDS)
    assert not page.exists()


def test_what_ends_the_children_of_a_failing_rank_does_not_end_the_page(tmp_path: Path) -> None:
    """As DeepSpeed's launcher does, with SIGTERM."""
    folder = made_run(tmp_path / "run", evaluations=1)
    written = Pages(folder, SILENT, writes=True)
    ending = threading.Timer(0.3, lambda: written._process.send_signal(signal.SIGTERM))
    ending.start()
    written.last(PATIENCE_SECONDS)
    ending.join()
    assert RunFolder(folder).report.exists() and written._process.returncode == 0
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_training_of_lower_priority_writes_its_last_page_too(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may not be raised by everybody."""

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pages.os, "setpriority", refused)
    folder = made_run(tmp_path / "run", evaluations=1)
    Pages(folder, SILENT, writes=True).last(PATIENCE_SECONDS)
    assert RunFolder(folder).report.exists() and not capsys.readouterr().err


def test_a_failure_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), Pages(tmp_path, SILENT, writes=True):
        raise ZeroDivisionError  # a training that fails, in a folder that is no run
    said = capsys.readouterr().err
    assert said.startswith(f"warning: the report is not written: {tmp_path} is no run")


def test_one_that_takes_too_long_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Pages(made_run(tmp_path / "run"), SILENT, writes=True)
    began = time.monotonic()
    written.last(0.01)
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert written._process.returncode and not written._thread.is_alive()
    assert capsys.readouterr().err.startswith("warning: no report within 0.01 s; it is: poa-ds")


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", evaluations=1)
    written = Pages(folder, SILENT, writes=False)
    assert not written.due
    written.last(PATIENCE_SECONDS)
    assert not RunFolder(folder).report.exists()
