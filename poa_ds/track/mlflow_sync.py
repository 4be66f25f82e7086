"""poa-ds mlflow-sync: fill an MLflow store from a run's folder, after its server was away.

The same runs, names and points as training makes. What is there stays as it is, so that the command
may be repeated, interrupted, or run beside the training.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from poa_ds.evaluate import results
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system import paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UserError
from poa_ds.system.json_text import parse_object
from poa_ds.system.lock import alone
from poa_ds.system.progress import progress
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import metrics_file, mlflow_ids, mlflow_store, tracker
from poa_ds.track.destination import Destination, destination
from poa_ds.track.mlflow_client import failure, set_environment
from poa_ds.track.mlflow_store import MlflowStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `poa-ds mlflow-sync`."""
    parser.add_argument("folder", type=paths.path, metavar="RUN", help="output directory of a run")
    parser.add_argument(
        "--uri",
        type=paths.place,
        help="another store than the recipe's mlflow.uri, such as http://localhost:5000 or "
        "sqlite:////absolute/path/mlflow.db",
    )


@dataclass
class Added:
    """What the store lacked."""

    points: int = 0
    pictures: int = 0
    tables: int = 0
    files: int = 0

    def __str__(self) -> str:
        return (
            f"{self.points:,} points, {self.pictures} pictures, "
            f"{self.tables} table{'s' * (self.tables != 1)} and {self.files} files"
        )


def run(args: argparse.Namespace) -> int:
    """Fill the store; the exit status."""
    folder = args.folder.resolve()
    recipe, rows = recipe_of(args.folder), _rows(args.folder)
    set_environment()
    place = destination(recipe, folder, os.environ, elsewhere=args.uri or "")
    own = args.uri in (None, recipe.mlflow.uri)
    with alone(folder):  # two would make each run, table and picture twice
        _sync(args.folder, recipe, rows, place, own=own)
    return 0


def after_evaluation(args: argparse.Namespace) -> None:
    """Bring what `poa-ds eval` has added to evaluations.jsonl into the runs of a training.

    Where there are none: nothing. MLflow that fails is said; the file has everything.
    """
    if getattr(args, "dry_run", False) or os.environ.get("RANK", "0") != "0":
        return
    files = RunFolder.around(args.run)
    if not all(path.is_file() for path in (files.evaluations, files.recipe, files.mlflow_ids)):
        return
    folder = files.path.resolve()
    try:
        recipe, ids = load.kept_recipe(files.recipe), mlflow_ids.known(folder, {})
        set_environment()
        place = destination(recipe, folder, os.environ)
    except UserError as error:
        say(f"warning: MLflow has not what was measured: {error}")
        return
    if "run" not in ids:
        return
    try:
        with alone(folder):
            store = mlflow_store.open_store(
                recipe, folder, ids, _sizes(recipe), place=place, mode="add"
            )
            added = store.fill_scores()
    except UserError as error:
        say(f"warning: {error}; poa-ds mlflow-sync {args.run} brings it later")
    except Exception as error:  # MLflow's and its libraries' own, of many kinds
        again = f"the run's folder has them all: poa-ds mlflow-sync {args.run}"
        say(f"warning: {failure(error, place, again)}")
    else:
        say(f"{added:,} points into {place}")


def _sync(
    named: Path, recipe: Recipe, rows: list[metrics_file.Row], place: Destination, *, own: bool
) -> None:
    """own: the store is the one of the recipe, whose ids stay in the folder."""
    folder = named.resolve()
    ids = mlflow_ids.known(folder, {})
    if not RunFolder(folder).mlflow_ids.exists():  # a training that goes on writes it too
        mlflow_ids.keep(folder, ids)
    if not own:
        ids = {"key": ids["key"]}
    tell(f"{named}: {len(rows):,} rows into {place}")
    try:
        store = mlflow_store.open_store(
            recipe, folder, ids, _sizes(recipe), place=place, mode="sync", keeps_ids=own
        )
        added = _fill(store, recipe, named, rows)
        if is_complete(folder, rows):
            store.close("FINISHED", rows[-1]["time"])
    except Exception as error:  # MLflow's and its libraries' own, of many kinds
        again = "what is there stays, the same command goes on"
        raise failure(error, place, again) from error
    children = len(ids["children"])
    tell(f"added {added}; run {ids['run']} and {children} runs of sizes, {place.experiment}")


def _fill(store: MlflowStore, recipe: Recipe, folder: Path, rows: list[metrics_file.Row]) -> Added:
    added, evaluations = Added(), results.read(RunFolder(folder).knn)
    parts = ceil(len(rows) / mlflow_store.ROWS_AT_A_TIME)
    added.points = sum(progress(store.fill(), total=parts, label="metrics", unit="parts"))
    added.points += store.fill_scores()
    maps = list(_evaluations(rows))
    for step, top1, _ in progress(maps, total=len(maps), label="pictures", unit="pictures"):
        added.pictures += tracker.draw(store, step, top1, recipe.evaluation.report_k)
    if evaluations:
        last = evaluations[-1]
        added.tables += store.table(last.step, results.table(last))
        if maps:
            store.note(*maps[-1], last.protocol)
    for path in store.missing_files():
        store.artifact(path)
        added.files += 1
    return added


def _evaluations(
    rows: list[metrics_file.Row],
) -> Iterator[tuple[int, dict[Subnet, float], metrics_file.Floors]]:
    """(step, k-NN accuracies by size, their floors) of the rows that have some."""
    for row in rows:
        curves, floors = metrics_file.knn_curves([row])
        if curves:
            yield row["step"], {size: points[0][1] for size, points in curves.items()}, floors


def recipe_of(folder: Path) -> Recipe:
    """The recipe that the run keeps. UserError: it is none."""
    path = RunFolder(folder).recipe
    if not path.is_file():
        raise UserError(f"{path} is absent: {folder} is no output directory of a run")
    return load.kept_recipe(path)


def _rows(folder: Path) -> list[metrics_file.Row]:
    path = RunFolder(folder).metrics
    if not path.is_file():
        raise UserError(f"{path} is absent: {folder} is no output directory of a run")
    rows = metrics_file.read_rows(path)
    if not rows:
        raise UserError(f"{path} has no rows yet")
    return rows


def _sizes(recipe: Recipe) -> dict[Subnet, int]:
    """Every size with its parameters."""
    import torch  # seconds; `--help` does without

    from poa_ds.recipe.backbone import backbone

    with torch.device("meta"):
        model = backbone(recipe)
    return {size: model.parameter_count(size) for size in derived.space(recipe).subnets()}


def is_complete(folder: Path, rows: list[Any]) -> bool:
    """Whether the run has come to its last step; one that has not may still go on."""
    path = RunFolder(folder).derived
    if not rows or not path.is_file():
        return False
    try:
        return rows[-1]["step"] >= parse_object(path.read_bytes(), steps=int)["steps"]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
