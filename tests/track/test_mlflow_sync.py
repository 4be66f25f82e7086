"""mlflow-sync makes the runs that training would have made, and nothing twice."""

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from poa_ds import cli
from poa_ds.evaluate import results
from poa_ds.evaluate.results import KnnRow
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.model.space import Subnet
from poa_ds.recipe import load
from poa_ds.recipe.tree import Recipe
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import mlflow_ids
from poa_ds.track.metrics_file import Floors
from poa_ds.track.mlflow_sync import after_evaluation
from poa_ds.track.tracker import Tracker
from tests.support.mlflow_runs import PATIENCE_SECONDS, Recorded, recorded, steps
from tests.track.test_tracker import closed_port

ROOT = Path(__file__).parents[2]
SMALL, LARGE = Subnet(32, 2), Subnet(96, 4)
LAST = 8


def parameters(width: int, depth: int) -> int:
    """Of photos.yaml's network, counted by hand: blocks, last norm, 8 px patches, 17 positions."""
    return depth * (12 * width**2 + 15 * width) + 2 * width + 193 * width + 18 * width


PARAMETERS = {SMALL: parameters(32, 2), LARGE: parameters(96, 4)}
FOLDERS = ("config.yaml", "deepspeed.json", "derived.json", "metrics.jsonl", "knn.jsonl")


def recipe_of(folder: Path, uri: str = "") -> Recipe:
    words = [f"output_dir={folder}", f"mlflow.uri={uri}", "mlflow.run_name=made"]
    return load.recipe(ROOT / "ds_configs/photos.yaml", words)


def train(folder: Path, recipe: Recipe, *, first: int = 0, last: int = LAST) -> Tracker:
    """What a training run leaves: its files, points, and two evaluations; not closed."""
    if not first:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(load.to_yaml(recipe))
        (folder / "deepspeed.json").write_text("{}\n")
        (folder / "derived.json").write_text(json.dumps({"steps": LAST}))
    tracker = Tracker.start(
        recipe,
        output_dir=folder,
        is_main=True,
        resumed_ids={} if first else None,
        first_step=first,
        sizes=[SMALL, LARGE],
        parameters=PARAMETERS,
    )
    for step in range(first, last + 1):
        tracker.log(step, {"loss/total": 9.0 - step, "odd(name)": step / 7})
        if step in (0, LAST):
            evaluate(tracker, folder, step)
    return tracker


def evaluate(tracker: Tracker, folder: Path, step: int) -> None:
    top1 = {SMALL: {20: 50.0 + step, 10: 49.0}, LARGE: {20: 60.0 + step, 10: 58.0}}
    images = {"images": 9, "of": 9}
    protocol = {"bank": images, "queries": images, "crop": 32, "resize": 32, "precision": "fp32"}
    row = KnnRow.of(step, protocol, top1, raw_pixels={20: 27.0, 10: 26.0})
    results.append(RunFolder(folder).knn, row)
    floors = Floors(27.0, {SMALL: 41.0, LARGE: 42.0})
    tracker.log_knn(step, top1, floors, protocol, table=results.table(row))


def sync(folder: Path, *words: str) -> int:
    return cli.main(["mlflow-sync", str(folder), *words])


@dataclass
class Whole:
    """A run that MLflow recorded undisturbed, and what it holds of it."""

    folder: Path
    runs: dict[str, Recorded]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("mlflow") / "whole"
    recipe = recipe_of(folder)
    tracker = train(folder, recipe)
    tracker.close(timeout_seconds=PATIENCE_SECONDS)
    yield Whole(folder, recorded(f"sqlite:///{folder}/mlflow.db", "photos"))


def copy(whole: Whole, folder: Path, *more: str) -> Path:
    """The files of the run without what MLflow has (or with it: mlflow.db, ...)."""
    folder.mkdir()
    for name in (*FOLDERS, *more):
        shutil.copy(whole.folder / name, folder / name)
    return folder


def same(runs: dict[str, Recorded], whole: Whole) -> None:
    """Everything but when the run was begun: training begins it before the first row."""
    assert {n: replace(r, start=0) for n, r in runs.items()} == {
        n: replace(r, start=0) for n, r in whole.runs.items()
    }


def test_a_run_that_was_never_recorded_becomes_the_same(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, uri = copy(whole, tmp_path / "run"), f"sqlite:///{tmp_path}/other.db"
    assert sync(folder, "--uri", uri) == 0
    runs = recorded(uri, "photos")
    same(runs, whole)
    run, child = runs["made"], runs["32x2 (small)"]
    assert run.status == "FINISHED" and child.parent == "made" and len(runs) == 3
    assert steps(run, "loss/total") == list(range(LAST + 1)) == steps(run, "odd_name_")
    assert child.params == {"width": "32", "depth": "2", "parameters": str(PARAMETERS[SMALL])}
    assert {"config.yaml", "knn/table_last.txt"} <= set(run.files)
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert run.start == child.start == round(1000 * first["time"])
    assert "added 46 points, 2 pictures, 1 table and 3 files" in capsys.readouterr().out
    assert sync(folder, "--uri", uri) == 0
    assert recorded(uri, "photos") == runs
    assert "added 0 points, 0 pictures, 0 tables and 0 files" in capsys.readouterr().out
    assert "run" not in json.loads((folder / "mlflow.json").read_text())  # another store's
    for text, files in (("a page", 1), ("a page", 0), ("another page", 1)):
        (folder / "report.html").write_text(text)
        assert sync(folder, "--uri", uri) == 0
        assert f"0 tables and {files} files" in capsys.readouterr().out
    assert recorded(uri, "photos")["made"].files == sorted([*run.files, "report.html"])


@pytest.mark.slow
def test_two_that_fill_a_store_at_once_make_nothing_twice(whole: Whole, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path / "twice")
    words = [sys.executable, "-m", "poa_ds.cli", "mlflow-sync", str(folder)]
    filling = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    said = sorted(process.communicate(timeout=PATIENCE_SECONDS)[0] for process in filling)
    assert [process.returncode for process in filling] == [0, 0], said
    assert sum("added 0 points, 0 pictures, 0 tables and 0 files" in text for text in said) == 1
    same(recorded(f"sqlite:///{folder}/mlflow.db", "photos"), whole)


def test_only_what_is_missing_is_added(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Points, a parameter and a run of a size are taken out of the store behind its back."""
    folder = copy(whole, tmp_path / "run", "mlflow.db", "mlflow.json")
    ids = json.loads((folder / "mlflow.json").read_text())
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        gone = database.execute("DELETE FROM metrics WHERE key LIKE 'odd%' AND step IN (2, 3, 8)")
        assert gone.rowcount == 3
        database.execute("DELETE FROM params WHERE key = 'seed'")
        database.execute(
            "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?",
            [ids["children"]["w0096_d04"]],
        )
    assert sync(folder) == 0
    same(recorded(f"sqlite:///{folder}/mlflow.db", "photos"), whole)
    # the size's run: knn_top1, knn_k20, knn_k10 and knn_random twice
    assert "added 11 points, 0 pictures" in capsys.readouterr().out


@pytest.mark.parametrize("knows_children", [True, False])
def test_runs_of_earlier_versions_get_what_they_lack(
    whole: Whole, tmp_path: Path, knows_children: bool
) -> None:
    """They were called by their labels, without tags, costs and the run's own k-NN metrics."""
    folder = copy(whole, tmp_path / "run", "mlflow.db", "mlflow.json")
    if not knows_children:
        ids = json.loads((folder / "mlflow.json").read_text())
        (folder / "mlflow.json").write_text(json.dumps(ids | {"children": {}}))
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        for now, then in (("32x2 (small)", "w0032_d02"), ("96x4 (large)", "w0096_d04")):
            assert database.execute(
                f"UPDATE runs SET name = '{then}' WHERE name = '{now}'"
            ).rowcount
            database.execute(f"UPDATE tags SET value = '{then}' WHERE value = '{now}'")
        assert database.execute("DELETE FROM tags WHERE key LIKE 'poa.%'").rowcount
        for table in ("metrics", "latest_metrics"):
            new = "key LIKE 'knn/%' OR key IN ('gflops', 'parameters')"
            assert database.execute(f"DELETE FROM {table} WHERE {new}").rowcount
    assert "w0032_d02" in recorded(f"sqlite:///{folder}/mlflow.db", "photos")
    assert sync(folder) == 0
    same(recorded(f"sqlite:///{folder}/mlflow.db", "photos"), whole)


def test_training_goes_on_in_the_runs_that_a_sync_made(tmp_path: Path) -> None:
    """The server is down for the first half: sync fills in, and the second half goes there."""
    folder, uri = tmp_path / "run", f"sqlite:///{tmp_path}/store.db"
    recipe = recipe_of(folder, uri)
    away = replace(recipe, mlflow=replace(recipe.mlflow, uri=f"http://localhost:{closed_port()}"))
    train(folder, away, last=4).close("KILLED", timeout_seconds=0)
    key = json.loads((folder / "mlflow.json").read_text())["key"]
    (folder / "config.yaml").write_text(load.to_yaml(recipe))
    assert sync(folder) == 0
    made = recorded(uri, "photos")["made"]
    assert steps(made, "loss/total") == [0, 1, 2, 3, 4] and made.status == "RUNNING"
    ids = json.loads((folder / "mlflow.json").read_text())
    assert ids["key"] == key and set(ids["children"]) == {"w0032_d02", "w0096_d04"}
    tracker = train(folder, recipe, first=5)
    tracker.close(timeout_seconds=PATIENCE_SECONDS)
    assert tracker.ids == ids
    runs = recorded(uri, "photos")
    assert len(runs) == 3 and steps(runs["made"], "loss/total") == list(range(LAST + 1))
    assert steps(runs["96x4 (large)"], "knn_top1") == [0, LAST]
    assert runs["96x4 (large)"].status == runs["made"].status == "FINISHED"


def test_runs_that_the_checkpoint_does_not_know_are_found_by_their_names(
    whole: Whole, tmp_path: Path
) -> None:
    """The checkpoint is older than the sizes' runs, and mlflow.json is gone."""
    folder = copy(whole, tmp_path / "run", "mlflow.db", "mlflow.json")
    ids = json.loads((folder / "mlflow.json").read_text())
    (folder / "mlflow.json").unlink()
    recipe = recipe_of(folder)
    for known in ({"key": ids["key"]}, {"run": ids["run"], "key": ids["key"], "children": {}}):
        tracker = Tracker.start(
            recipe, output_dir=folder, is_main=True, resumed_ids=known, first_step=LAST
        )
        tracker.close(timeout_seconds=PATIENCE_SECONDS)
        assert tracker.ids["run"] == ids["run"]
        (folder / "mlflow.json").unlink()
    same(recorded(f"sqlite:///{folder}/mlflow.db", "photos"), whole)


def test_mistakes_are_named(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sync(tmp_path / "nothing") == 1
    assert "config.yaml is absent" in capsys.readouterr().err
    folder = copy(whole, tmp_path / "run")
    uri = f"http://localhost:{closed_port()}"
    assert sync(folder, "--uri", uri) == 1
    errors = capsys.readouterr().err
    assert f"MLflow at {uri} failed" in errors and "the same command goes on" in errors
    (folder / "metrics.jsonl").write_text("")
    assert sync(folder) == 1 and "no rows yet" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["mlflow-sync"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit):
        cli.main(["mlflow-sync", "--help"])
    assert "poa-ds mlflow-sync runs/photos" in capsys.readouterr().out


PROTOCOL = {"val": {"images": 1000, "of": 1000}, "crop": 32, "resize": 32, "precision": "fp32"}


def row(size: str, value: float, **changed: object) -> ScoreRow:
    own = ScoreRow(
        *("linear", 3, size, "top1", value, None, "val", "held_out"),
        *({"rate": 0.1}, 1.5, PROTOCOL, "2.0"),
    )
    return replace(own, **changed)


def points(run: Recorded, name: str) -> list[tuple[int, float]]:
    return [(step, value) for step, value, _ in run.points.get(name, [])]


def test_scores_reach_the_runs_of_sizes_behind_a_training(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(whole, tmp_path / "run", "mlflow.db", "mlflow.json")
    path, uri = RunFolder(folder).evaluations, f"sqlite:///{folder}/mlflow.db"
    few = {"kind": "logistic", "metric": "top1_of_1%", "step": LAST}
    again = row("32x2", 52.0, protocol={**PROTOCOL, "crop": 28})
    rows = (row("32x2", 50.0), row("96x4", 60.0), row("raw_pixels", 20.0), row("32x2", 40.0, **few))
    for added, fresh in ((3, rows), (2, (again, row("96x4", 55.0, step=1))), (0, ())):
        for each in fresh:
            results.append(path, each)
        capsys.readouterr()
        after_evaluation(argparse.Namespace(run=folder))
        assert f"{added} points into MLflow at {uri}" in capsys.readouterr().err
    runs = recorded(uri, "photos")
    assert points(runs["32x2 (small)"], "linear_top1") == [(3, 50.0), (3, 52.0)]
    assert points(runs["96x4 (large)"], "linear_top1") == [(1, 55.0), (3, 60.0)]
    assert points(runs["32x2 (small)"], "logistic_top1_of_1_") == [(LAST, 40.0)]
    assert len(runs) == 3 and not any("linear" in name for name in runs["made"].points)
    assert sync(folder) == 0
    assert "added 0 points" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_brings_the_scores_that_are_made_beside_it(tmp_path: Path) -> None:
    folder, uri = tmp_path / "run", f"sqlite:///{tmp_path}/store.db"
    tracker = train(folder, recipe_of(folder, uri))
    results.append(RunFolder(folder).evaluations, row("32x2", 50.0))
    tracker.log(LAST + 1, {"loss/total": 0.5})
    tracker.close(timeout_seconds=PATIENCE_SECONDS)
    run = recorded(uri, "photos")["32x2 (small)"]
    assert points(run, "linear_top1") == [(3, 50.0)]


def test_a_store_that_is_away_costs_an_evaluation_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = recipe_of(folder, f"sqlite:///{tmp_path}/gone/store.db")
    RunFolder(folder).recipe.write_text(load.to_yaml(recipe))
    mlflow_ids.keep(folder, {"key": "a", "run": "b", "children": {}})
    results.append(RunFolder(folder).evaluations, row("32x2", 50.0))
    after_evaluation(argparse.Namespace(run=folder, dry_run=False))
    said = capsys.readouterr().err
    assert "warning: MLflow at" in said and f"poa-ds mlflow-sync {folder}" in said
