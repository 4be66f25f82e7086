"""The metrics of a run into metrics.jsonl and trackers, none of which stops or delays training.

metrics.jsonl is written first, in the calling thread. A second thread alone touches MLflow: it
imports it, makes the store (seconds), reads the rows back from the file. Whatever goes wrong there
is said and tried again; the file has everything. TensorBoard and Weights & Biases have threads too.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from poa_ds.evaluate import results
from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Recipe
from poa_ds.system.background import Background
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import mlflow_ids, wandb_store
from poa_ds.track.destination import destination
from poa_ds.track.metrics_file import (
    Floors,
    MetricsFile,
    Row,
    knn_curves,
    knn_values,
    read_rows,
    rows_after,
    values_of,
)
from poa_ds.track.mlflow_client import IMPORTING, set_environment
from poa_ds.track.mlflow_store import MlflowStore, Status, open_store
from poa_ds.track.tensorboard_store import TensorboardStore
from poa_ds.track.tensorboard_store import open_store as open_tensorboard
from poa_ds.track.wandb_store import WandbStore

FINAL_ERRORS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")


class Tracker:
    """What the training loop talks to; one without a folder keeps nothing."""

    def __init__(
        self,
        report_k: int,
        *,
        folder: Path | None = None,
        metrics: MetricsFile | None = None,
        background: Background[MlflowStore] | None = None,
        tensorboard: Background[TensorboardStore] | None = None,
        wandb: Background[WandbStore] | None = None,
        ids: Mapping[str, Any] | None = None,
        wandb_id: str = "",
        nonfinite: Mapping[str, int] | None = None,
    ) -> None:
        """nonfinite: how often each metric was nan or inf so far."""
        self._report_k, self._folder, self._metrics = report_k, folder, metrics
        self._background, self._ids = background, {} if ids is None else ids
        self._tensorboard, self._wandb, self._wandb_id = tensorboard, wandb, wandb_id
        self._nonfinite, self._broken = Counter(nonfinite), False

    @classmethod
    def silent(cls, recipe: Recipe) -> Self:
        """One whose calls do nothing, as on ranks other than the main one."""
        return cls(recipe.evaluation.report_k)

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        *,
        output_dir: Path,
        is_main: bool,
        resumed_ids: Mapping[str, Any] | None = None,
        first_step: int = 0,
        sizes: Sequence[Subnet] = (),
        parameters: Mapping[Subnet, int] | None = None,
    ) -> Self:
        """A tracker at work.

        resumed_ids: `ids` from the checkpoint ({} if it has none); None is a new run. first_step:
        the step a resumed run goes on with. sizes: those that have a run of their own, with their
        numbers of parameters where known. UserError: output_dir cannot be written.
        """
        if not is_main:
            return cls.silent(recipe)
        resumed = resumed_ids is not None
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            path = RunFolder(output_dir).metrics
            metrics = MetricsFile(path, keep_through=first_step if resumed else None)
            ids = _mlflow_ids(recipe, output_dir, resumed_ids)
            wandb = _wandb_id(recipe, output_dir, resumed_ids)
        except OSError as error:
            raise UserError(f"output_dir {output_dir} cannot be written: {error}") from error
        known = {subnet: (parameters or {}).get(subnet) for subnet in sizes}
        mode = "resume" if resumed else "new"
        return cls(
            recipe.evaluation.report_k,
            folder=output_dir,
            metrics=metrics,
            background=_in_background(recipe, output_dir, ids, known, mode) if ids else None,
            tensorboard=_tensorboard(recipe, output_dir),
            wandb=_wandb(recipe, output_dir, wandb) if wandb else None,
            ids=ids,
            wandb_id=wandb,
            nonfinite=_nonfinite_counts(read_rows(path)),
        )

    @property
    def ids(self) -> dict[str, Any]:
        """What a checkpoint stores so that a resumed run goes on in the same runs of trackers."""
        own = {"wandb": self._wandb_id} if self._wandb_id else {}
        return json.loads(json.dumps({**self._ids, **own}))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of one step. Points at or before a metric's last step are dropped."""
        self._record(step, values)

    def log_knn(
        self,
        step: int,
        top1: Mapping[Subnet, Mapping[int, float]],
        floors: Floors | None,
        protocol: Mapping[str, Any],
        *,
        table: str = "",
    ) -> None:
        """k-NN top-1 in percent by size and k, with a heat map for the k that the recipe reports.

        protocol: how it was measured (bank, k, temperature, ...), kept with the run, and so is the
        table, where there is one.
        """
        values = knn_values(top1, floors or Floors(), report_k=self._report_k)
        if self._record(step, values):
            of_sizes = {size: by_k[self._report_k] for size, by_k in top1.items()}
            reported = {size: x for size, x in of_sizes.items() if math.isfinite(x)}
            found = floors or Floors()
            if reported and self._background:  # else the features of no size were finite
                self._background.submit(lambda store: store.note(step, reported, found, protocol))
            for background in self._stores:
                if reported:
                    background.submit(lambda store: draw(store, step, reported, self._report_k))
                if table:
                    background.submit(lambda store: store.table(step, table))

    def sync(self) -> None:
        """Bring the rows onto the disk: a checkpoint must not know more steps than they do."""
        try:
            if self._metrics:
                self._metrics.sync()
        except OSError as error:
            self._unwritable(error)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file or a folder with the run in MLflow."""
        if self._background:
            self._background.submit(lambda store: store.artifact(path, folder))

    def flush(self, timeout_seconds: float = 30.0) -> bool:
        """Whether each store has everything logged so far, each after at most that time."""
        return all([background.flush(timeout_seconds) for background in self._stores])

    def close(self, status: Status = "FINISHED", timeout_seconds: float = 30.0) -> None:
        """End the MLflow runs with this status, waiting at most that long."""
        if self._metrics:
            try:
                self._metrics.close()
            except OSError as error:
                say(f"metrics.jsonl lacks its last rows: {error}")
        if self._background:
            self._background.submit(lambda store: store.close(status))
            undone = self._background.close(timeout_seconds)
            if undone:
                say(
                    f"MLflow has not taken the last {undone} entries; the run's folder has them "
                    f"all, and this brings them there: poa-ds mlflow-sync {self._folder}"
                )
            self._background = None
        for background, lacking, command in (
            (self._tensorboard, "TensorBoard's files lack", "tensorboard"),
            (self._wandb, "Weights & Biases lacks", "wandb"),
        ):
            if background:
                background.submit(lambda store: store.close(status))
                if background.close(timeout_seconds):
                    say(
                        f"{lacking} the last entries; the run's folder has them all, and this"
                        f" brings them there: poa-ds {command} {self._folder}"
                    )
        self._tensorboard = self._wandb = None
        self._metrics = None

    @property
    def _stores(self) -> list[Background]:
        every = (self._background, self._tensorboard, self._wandb)
        return [store for store in every if store is not None]

    def _record(self, step: int, values: Mapping[str, float]) -> bool:
        """Into the file and into the queue; False where nothing was new."""
        if self._metrics is None:
            return False
        finite = self._finite(values)
        try:
            row = self._metrics.append(step, finite)
        except OSError as error:
            self._unwritable(error)
            return True
        if self._broken:
            say("metrics.jsonl is written again, and complete")
            self._broken = False
        fresh = bool(values_of(row))
        for background in self._stores if fresh else ():
            background.submit(lambda store: store.catch_up())
        return fresh

    def _unwritable(self, error: OSError) -> None:
        """A full disk must not end a run that can still save."""
        if not self._broken:
            advice = "its rows wait in memory until it can"
            say(f"metrics.jsonl cannot be written, {advice}: {error}")
        self._broken = True

    def _finite(self, values: Mapping[str, float]) -> dict[str, float]:
        """nan and inf would ruin a chart's scale: they become counts of themselves."""
        numbers = {name: float(value) for name, value in values.items()}
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        self._nonfinite.update(f"nonfinite/{name}" for name in bad)
        counts = {f"nonfinite/{name}": float(self._nonfinite[f"nonfinite/{name}"]) for name in bad}
        return {name: x for name, x in numbers.items() if name not in bad} | counts


def _in_background(
    recipe: Recipe,
    output_dir: Path,
    ids: dict[str, Any],
    sizes: Mapping[Subnet, int | None],
    mode: Literal["new", "resume"],
) -> Background[MlflowStore]:
    """The thread that talks to MLflow. What it hears of ids it notes in `ids`."""
    set_environment()
    folder = output_dir.resolve()
    place = destination(recipe, folder, os.environ)
    background = Background(
        "MLflow",
        lambda: open_store(recipe, folder, ids, sizes, place=place, mode=mode),
        is_final=_is_final,
        advice=f"training goes on, every metric is in {RunFolder(output_dir).metrics}",
    )
    background.submit(MlflowStore.catch_up)
    background.submit(_keep_files)
    return background


def _tensorboard(recipe: Recipe, output_dir: Path) -> Background[TensorboardStore] | None:
    """The thread that writes TensorBoard's files, where the recipe wants them."""
    if "tensorboard" not in recipe.trackers:
        return None
    folder = output_dir.resolve()
    background = Background(
        "TensorBoard",
        lambda: open_tensorboard(folder),
        is_final=_is_final,
        advice=f"training goes on, every metric is in {RunFolder(output_dir).metrics}",
    )
    background.submit(lambda store: draw_missing(store, folder, recipe.evaluation.report_k))
    return background


def _mlflow_ids(recipe: Recipe, folder: Path, resumed: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those to go on with, kept in the folder; {}: not tracked there."""
    if "mlflow" not in recipe.trackers:
        return {}
    if resumed is not None:
        resumed = {name: x for name, x in resumed.items() if name != "wandb"}
    ids = mlflow_ids.known(folder, resumed)
    mlflow_ids.keep(folder, ids)
    return ids


def _wandb_id(recipe: Recipe, folder: Path, resumed: Mapping[str, Any] | None) -> str:
    off = os.environ.get("WANDB_MODE") == wandb_store.DISABLED
    return wandb_store.known_id(folder, resumed) if "wandb" in recipe.trackers and not off else ""


def _wandb(recipe: Recipe, output_dir: Path, key: str) -> Background[WandbStore]:
    """The thread that talks to Weights & Biases."""
    folder = output_dir.resolve()
    background = Background(
        "Weights & Biases",
        lambda: wandb_store.open_store(recipe, folder, key),
        is_final=_is_final,
        advice=f"training goes on, every metric is in {RunFolder(output_dir).metrics}",
    )
    background.submit(WandbStore.catch_up)
    background.submit(lambda store: draw_missing(store, folder, recipe.evaluation.report_k))
    return background


def draw_missing(store: TensorboardStore | WandbStore, folder: Path, k: int) -> None:
    """The heat maps of all evaluations in metrics.jsonl, and the last table."""
    path = RunFolder(folder).metrics
    for _, row in rows_after(path) if path.is_file() else ():
        curves, _ = knn_curves([row])
        if curves:
            draw(store, row["step"], {size: points[0][1] for size, points in curves.items()}, k)
    if rows := results.read(RunFolder(folder).knn):
        store.table(rows[-1].step, results.table(rows[-1]))


def _nonfinite_counts(rows: Iterable[Row]) -> dict[str, int]:
    found = (item for row in rows for item in values_of(row).items())
    return {name: int(count) for name, count in found if name.startswith("nonfinite/")}


def _is_final(error: Exception) -> bool:
    return isinstance(error, ImportError) or getattr(error, "error_code", None) in FINAL_ERRORS


def _keep_files(store: MlflowStore) -> None:
    for path in store.missing_files():
        store.artifact(path)


def draw(
    store: MlflowStore | TensorboardStore | WandbStore,
    step: int,
    top1: Mapping[Subnet, float],
    k: int,
) -> bool:
    """Whether the heat map of an evaluation was missing, and is there now."""
    if store.has_picture(step):
        return False
    with IMPORTING:
        from poa_ds.track import plots
    figure = plots.heat_map(top1, title=f"k-NN top-1 (k = {k}), step {step:,}")
    store.picture(step, plots.pixels(figure))
    return True
