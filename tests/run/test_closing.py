"""The closing screen: of made-up runs as text, of real ones in test_training.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from poa_ds.checkpoint import folders
from poa_ds.evaluate import results
from poa_ds.evaluate.right import RightRow
from poa_ds.run import closing
from poa_ds.system.events import Event, Events
from poa_ds.system.run_folder import RunFolder
from tests.support.made_runs import PHOTOS, made_run

WHOLE = """\
time 7 min, 13 % of it evaluations, 100 images/s
restarts 1, skipped steps 1, alarms 0

  size  name   parameters   GFLOPs      k-NN (k=20)   gain
  32x2  small      32.4 K  0.00111     69.1 ± 3.3 %  +39.3
  32x3             45.1 K  0.00156     70.4 ± 3.2 %  +39.3
  32x4             57.9 K  0.00202     71.8 ± 3.2 %  +39.3
  48x2               67 K  0.00229     73.1 ± 3.2 %  +39.3
  64x2              114 K  0.00388     77.2 ± 3.0 %  +39.3
  64x3  base        164 K  0.00563     78.4 ± 2.9 %  +39.3
  80x2              173 K   0.0059     81.1 ± 2.8 %  +39.3
  96x2              245 K  0.00833     85.1 ± 2.5 %  +39.3
* 96x3              357 K   0.0122     86.5 ± 2.4 %  +39.3
  96x4  large       469 K   0.0161     87.7 ± 2.3 %  +39.3
15 sizes reach 69.1 % (32x2) to 87.7 % (96x4)
floors: random weights 29.8 to 48.5 %, raw pixels 19.0 %
* the cheapest that is not shown to be worse than the highest (95 % error)

report          poa-ds report 'a run' --out 'a run/report.html'
choose a size   poa-ds sizes 'a run' --max-params 357K
take it out     poa-ds extract 'a run' --size 96x3 --out 'a run/96x3'"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 400 seconds in two parts, with a pause of an hour between them."""
    monkeypatch.chdir(tmp_path)
    path = made_run(Path("a run"))
    files = RunFolder(path)
    rows = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    rows[-1]["speed/evaluation_seconds"] = 52.0
    later = [row | {"time": row["time"] + 3600 * (row["step"] > 200)} for row in rows]
    files.metrics.write_text("".join(json.dumps(row) + "\n" for row in later))
    with monkeypatch.context() as patched:
        events = Events(files.events, fresh=True, writes=True)
        for step, when, kind in ((0, 0, "start"), (7, 7, "skipped"), (200, 3800, "resume")):
            patched.setattr("time.time", lambda when=when: 1.7e9 + when)
            events.append(step, kind)
    return path


def save(run: Path, step: int) -> Path:
    folder = folders.folder_of(RunFolder(run).checkpoints, step)
    folder.mkdir(parents=True)
    (folder / "extra").touch()
    record = {"file": "extra", "bytes": 0, "crc32": 0}
    manifest = {key: {} for key in ("state", "adam_steps", "counters", "shapes", "made")}
    manifest |= {"format": folders.FORMAT, "shards": [], "extra": record, "recipe": ""}
    folders.write_manifest(folder, manifest | {"stage": 0, "ranks": 1})
    return folder


def test_a_whole_run_closes_with_its_sizes_and_three_commands(run: Path) -> None:
    assert closing.at_the_end(run) == WHOLE
    assert 1 + len(WHOLE.splitlines()) <= 24 and max(map(len, WHOLE.splitlines())) <= 80


def test_it_chooses_query_by_query_where_the_answers_were_kept(run: Path) -> None:
    """Whatever the largest gets wrong the second gets wrong too: 1.2 points are shown then."""
    evaluated = results.read(RunFolder(run).knn)[-1]
    bits = {s: np.arange(760) < round(7.6 * by_k[20]) for s, by_k in evaluated.knn.items()}
    kept = RightRow.of(evaluated.step, evaluated.protocol, 20, bits)
    results.append(RunFolder(run).right, kept)
    assert "* 96x4  large" in closing.at_the_end(run)


def test_465_sizes_fit_on_a_screen_and_the_best_is_among_them(tmp_path: Path) -> None:
    resnet = PHOTOS.with_name("resnet152x2_in1k.yaml")
    lines = closing.at_the_end(made_run(tmp_path / "r", config=resnet, evaluations=2)).splitlines()
    assert 1 + len(lines) <= 24 and sum(line.startswith("* 128x") for line in lines) == 1
    assert {name for name in ("R50", "R101", "R152") if name in "\n".join(lines)} == {
        *("R50", "R101", "R152")
    }


def test_a_run_without_evaluations_names_its_sizes(tmp_path: Path) -> None:
    lines = closing.at_the_end(made_run(tmp_path / "r", evaluations=0)).splitlines()
    assert any("small" in line and line.endswith("-      -") for line in lines)
    assert not any("cheapest" in line or "floors" in line for line in lines)


def test_the_time_of_a_pause_is_not_the_runs() -> None:
    rows = [{"step": step, "time": when} for step, when in ((1, 10.0), (2, 20.0), (3, 120.0))]
    events = [Event(0, 5.0, "start"), Event(2, 100.0, "resume"), Event(3, 121.0, "end")]
    assert closing.busy_seconds(rows, events) == 15 + 21
    assert closing.busy_seconds([], []) == 0


def test_behind_an_error_stands_what_is_saved_and_which_steps_come_again(run: Path) -> None:
    assert closing.after_an_error(run) == (
        "after step 400: nothing is saved yet; the same command starts anew"
    )
    folder = save(run, 300)
    found = closing.after_an_error(run).splitlines()
    assert found[0] == (
        "after step 400: saved is step 300, where the same command continues; "
        "steps 301 to 400 are taken again"
    )
    assert f"checkpoint      {folder}" in found
    (folder / "extra").unlink()  # a checkpoint that is not whole does not count
    said = f"no checkpoint in {run / 'checkpoints'} is whole"
    assert said in closing.after_an_error(run)


def test_a_stop_is_short_and_names_the_checkpoint_and_the_page_that_is_there(run: Path) -> None:
    folder = save(run, 400)
    (run / "report.html").touch()
    first, _, *rest = closing.at_a_stop(run).splitlines()
    assert first.startswith("time 7 min") and rest == [
        f"checkpoint      {folder}",
        "report          a run/report.html",
    ]


def test_a_file_that_is_damaged_is_told_and_ends_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(run).knn.write_text("{}\n")
    closing.show(closing.at_the_end, run)
    printed = capsys.readouterr()
    assert not printed.out and "left out: a run/knn.jsonl, line 1 is damaged" in printed.err
