"""One training run for Weights & Biases: the run, and in its group a run for each size.

A run keeps its ids from start to start. What is in the run's files is sent from the first row on,
or from the last step on that a server has; files of WANDB_MODE=offline are made anew at each start.
The only importer of wandb, and only when a store is opened.
"""

import html
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poa_ds.evaluate import score_rows
from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Recipe
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.files import replace_text
from poa_ds.system.lock import claim
from poa_ds.system.run_folder import RunFolder
from poa_ds.system.typed_yaml import flat, plain
from poa_ds.track.destination import wandb_project
from poa_ds.track.metrics_file import Row, rows_after, size_of, values_of
from poa_ds.track.mlflow_client import IMPORTING
from poa_ds.track.mlflow_store import Status
from poa_ds.track.mlflow_view import View

STEP = "step"  # the axis of all curves
SENT = "rows_through"  # the last row of metrics.jsonl that was sent; scores are of any step
DISABLED = "disabled"  # WANDB_MODE that switches it off
# few and short waits: a server that is away is asked again later, by Background
PATIENCE_SECONDS = 20.0
# nothing of the machine: the words of a command may hold a password
PRIVATE = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}
ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
AWAY = (
    "no key of Weights & Biases here (`wandb login`, or WANDB_API_KEY): its files are written in"
    " {folder}, and `wandb sync` brings them there"
)


def known_id(folder: Path, resumed: Mapping[str, Any] | None) -> str:
    """The id to go on with, kept in the folder. resumed: what the checkpoint has; None: a new run.

    Sizes have the same id with their label.
    """
    path = RunFolder(folder).wandb_id
    kept = ""
    if resumed is not None:
        kept = str(resumed.get("wandb", "")) or (path.read_text("utf-8") if path.is_file() else "")
    found = kept.strip() or uuid.uuid4().hex
    if not found.isalnum():
        raise UserError(f"{path} is damaged: remove it, the run goes on under a new id then")
    replace_text(path, f"{found}\n")
    return found


def open_store(recipe: Recipe, folder: Path, key: str) -> "WandbStore":
    """The store of the run with that id, filled from its files. ImportError: no wandb."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with IMPORTING:
        import wandb
    return WandbStore(wandb, recipe, folder, key)


class WandbStore:
    """The run and those of its sizes. Every call may raise, and may be made again then."""

    def __init__(self, wandb: Any, recipe: Recipe, folder: Path, key: str) -> None:
        self._wandb, self._recipe, self._key = wandb, recipe, key
        self._files, self._view = RunFolder(folder), View(recipe)
        self._name = recipe.mlflow.run_name or folder.name
        self._runs: dict[str, Any] = {}
        self._begins: dict[str, int] = {}  # the last step that a server had
        self._offset, self._tabled, self._drawn = 0, -1, set()
        self._added: set[str] = set()  # the runs that have their part of the row at the offset
        self._scores: dict[tuple[str, str, int], float] = {}
        self._files.wandb.mkdir(parents=True, exist_ok=True)
        self._lock = claim(self._files.wandb)
        try:
            self.offline = self._is_offline()
            self._of("")
        except BaseException:
            os.close(self._lock)
            raise

    def _is_offline(self) -> bool:
        mode = self._wandb.setup().settings.mode
        if mode == DISABLED:
            raise UserError(f"WANDB_MODE is {DISABLED}: nothing is written")
        if mode == "offline":
            return True
        if self._wandb.login(prompt=False):
            return False
        say(AWAY.format(folder=self._files.wandb))
        return True

    @property
    def place(self) -> str:
        """Where it is to be seen, or what brings it there."""
        if self.offline:
            return f"wandb sync {self._files.wandb}/offline-run-*"
        return str(self._of("").url)

    def catch_up(self) -> int:
        """The number of rows of the run's files that were added now."""
        return self._fill() + self._fill_scores()

    def _fill(self) -> int:
        rows = 0
        if self._files.metrics.is_file():
            for offset, row in rows_after(self._files.metrics, self._offset):
                self._add(row)
                self._offset, self._added = offset, set()
                rows += 1
        return rows

    def _add(self, row: Row) -> None:
        for label, values in self._view.by_run(values_of(row)).items():
            if values and label not in self._added:
                run = self._of(label)
                # that very step may lack a row: one that comes again is the same point
                if row[STEP] >= self._begins[label]:
                    run.log({**values, STEP: row[STEP], SENT: row[STEP]})
                self._added.add(label)

    def _fill_scores(self) -> int:
        rows = score_rows.read(self._files.evaluations)
        added = 0
        for row in {(row.size, row.name, row.step): row for row in rows}.values():  # the newest
            key, size = (row.size, row.name, row.step), Subnet.read(row.size)
            if size is None or self._scores.get(key) == row.value:  # a floor, or known
                continue
            run = self._of(size.label)
            if run.summary.get(row.name) != row.value:  # the newest is what a server has
                run.log({row.name: row.value, STEP: row.step})
            self._scores[key] = row.value
            added += 1
        return added

    def has_picture(self, step: int) -> bool:
        return step in self._drawn or step < self._begins[""]

    def picture(self, step: int, pixels: Any) -> None:
        """The heat map. pixels: (rows, columns, 3 or 4), uint8."""
        self._of("").log({"knn_heatmap": self._wandb.Image(pixels), STEP: step})
        self._drawn.add(step)

    def table(self, step: int, text: str) -> bool:
        """Whether that table of k-NN accuracies was not there."""
        if step <= self._tabled or step < self._begins[""]:
            return False
        page = self._wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
        self._of("").log({"knn_table": page, STEP: step})
        self._tabled = step
        return True

    def close(self, status: Status = "FINISHED") -> None:
        """End the runs; one that was stopped shows as preempted. TimeoutError: not all was sent."""
        late = False
        for label, run in list(self._runs.items()):
            if status == "KILLED":
                run.mark_preempting()
            try:
                run.finish(exit_code=0 if status == "FINISHED" else 1)
            except TimeoutError:  # the others are ended too
                late = True
            del self._runs[label]
        os.close(self._lock)
        if late:
            files = self._files.wandb / "run-*"
            raise TimeoutError(f"not all was sent in time: `wandb sync {files}` sends it")

    def _of(self, label: str) -> Any:
        """The run of a size; of what belongs to none: empty."""
        if label in self._runs:
            return self._runs[label]
        key = f"{self._key}-{label}" if label else self._key
        run = self._wandb.init(
            id=key,
            dir=self._files.path,
            mode="offline" if self.offline else "online",
            project=wandb_project(os.environ),
            group=f"{self._name}-{self._key[:8]}",
            job_type="size" if label else "training",
            name=self._view.name(size_of(label)) if label else self._name,
            config=self._config(label),
            settings=self._settings(label),
            reinit="create_new",  # beside the others
            **({} if self.offline else {"resume": "allow"}),
        )
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        run.define_metric(SENT, hidden=True)
        last = run.summary.get(SENT)
        self._begins[label] = int(last) if last is not None else -1
        self._runs[label] = run
        for old in self._files.wandb.glob(f"offline-run-*-{key}"):
            if old != Path(run.dir).parent:  # but for the machine's load, all is made again
                shutil.rmtree(old)
        return run

    def _config(self, label: str) -> dict[str, Any]:
        if not label:
            return {key: _printed(value) for key, value in flat(plain(self._recipe)).items()}
        size = size_of(label)
        found = {"width": size.width, "depth": size.depth_text, "size": str(size)}
        return found | self._view.costs(size)

    def _settings(self, label: str) -> Any:
        return self._wandb.Settings(
            **PRIVATE,
            init_timeout=PATIENCE_SECONDS,
            finish_timeout=PATIENCE_SECONDS,
            finish_timeout_raises=True,
            stop_fn=_not_stopped,
            x_disable_stats=bool(label),  # once for the machine, not for each size
        )


def _not_stopped() -> None:
    say("Weights & Biases asks to stop: it does not end a training, SIGTERM does (Run.stop)")


def _printed(value: object) -> object:
    return value if isinstance(value, bool | int | float | str) else str(value)
