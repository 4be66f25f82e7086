"""One training run in an MLflow store: the run, a run for each size, points, pictures, files.

Every call may take seconds and may raise, and may be made again then: nothing comes twice.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Recipe
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.run_folder import RunFolder
from poa_ds.system.typed_yaml import flat, plain
from poa_ds.system.versions import versions
from poa_ds.track import mlflow_ids
from poa_ds.track.destination import Destination
from poa_ds.track.logged_points import AllSteps, LastSteps
from poa_ds.track.metrics_file import Floors, rows_after, size_of, values_of
from poa_ds.track.mlflow_client import connect
from poa_ds.track.mlflow_scores import PROTOCOL, Scores
from poa_ds.track.mlflow_view import COMMIT, NOTE, SIZE, View, allowed

Status = Literal["FINISHED", "FAILED", "KILLED"]
RUN_TAG = "poa_run"  # has `key` of the ids: the run is found by it where the ids do not help

TABLE_STEP = "poa.table_step"  # of the table among the artifacts

# MLflow's limits for one log_batch call
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000
ROWS_AT_A_TIME = 200

Mode = Literal["new", "resume", "sync", "add"]
ABSENT = "does not have this run: is it tracked elsewhere?"


def open_store(
    recipe: Recipe,
    folder: Path,
    ids: dict[str, Any],
    sizes: Mapping[Subnet, int | None],
    *,
    place: Destination,
    mode: Mode = "new",
    keeps_ids: bool = True,
) -> "MlflowStore":
    """The store at a place, mlflow being imported on the way; see MlflowStore for the rest."""
    if mode == "add" and place.file and not place.file.exists():
        raise UserError(f"{place} {ABSENT}")
    client, entities = connect(place, makes=mode != "add")
    return MlflowStore(
        client,
        entities,
        recipe,
        folder,
        place=place,
        ids=ids,
        sizes=sizes,
        mode=mode,
        keeps_ids=keeps_ids,
    )


class MlflowStore:
    """One run and the runs of its sizes in MLflow. Every call may take seconds, and may raise."""

    def __init__(
        self,
        client: Any,
        entities: Any,
        recipe: Recipe,
        folder: Path,
        *,
        place: Destination,
        ids: dict[str, Any],
        sizes: Mapping[Subnet, int | None],
        mode: Mode,
        keeps_ids: bool,
    ) -> None:
        """Opens the run of `ids` (or with their key), or a new one; the ids are put there.

        client, entities: an mlflow.MlflowClient and mlflow.entities. sizes: with their parameters.
        keeps_ids: in the run's folder; those of a store besides are found by their key. mode add:
        to a run that is there; UserError: it is not.
        """
        self._client, self._entities = client, entities
        self._recipe, self._folder, self._place, self._ids = recipe, folder, place, ids
        self._keeps_ids = keeps_ids
        self._sizes = {size.label: (size, parameters) for size, parameters in sizes.items()}
        self._knowledge = AllSteps if mode in ("sync", "add") else LastSteps
        self._known: dict[str, LastSteps | AllSteps] = {}
        self._offset, self._view = 0, View(recipe)
        self._scores = Scores(client, RunFolder(folder).evaluations)
        if mode == "add" and self._alive(ids["run"]) is None:
            raise UserError(f"{place} {ABSENT}")
        self.experiment = self._experiment_id()
        run = self._find()
        if run is None:
            run = self._create(recipe.mlflow.run_name or folder.name, {RUN_TAG: ids["key"]})
        self.experiment = run.info.experiment_id
        ids |= {"run": run.info.run_id, "children": ids.get("children", {})}
        self._remember(run)
        params = {key: str(x)[:LONGEST_PARAM] for key, x in flat(plain(recipe)).items()}
        if mode == "resume" and run.data.params:
            self._resume(run, params)
        self._log_params(run, params)
        made_by = {} if mode in ("sync", "add") else {COMMIT: versions()["commit"]}
        self._tags = dict(run.data.tags)
        self._tag(self._view.run_tags() | made_by)
        self._keep_ids()

    def catch_up(self) -> int:
        """The number of points of the run's files that the runs lacked; they are there now."""
        return sum(self.fill()) + self.fill_scores()

    def fill_scores(self) -> int:
        """The same of evaluations.jsonl alone: the sizes' linear_top1 and others."""
        added = 0
        for run, row, milliseconds in self._scores.lacking(self._run_of_size):
            name = allowed(row.name)
            point = self._entities.Metric(name, row.value, milliseconds, row.step)
            self._client.log_batch(run, metrics=[point])
            self._client.set_tag(run, f"{PROTOCOL}{name}", row.protocol_id)
            added += 1
        return added

    def fill(self) -> Iterator[int]:
        """Log what metrics.jsonl has; the number of points after every ROWS_AT_A_TIME rows."""
        rows = rows_after(RunFolder(self._folder).metrics, self._offset)
        while some := list(islice(rows, ROWS_AT_A_TIME)):
            points: dict[str, list] = {}
            for _, row in some:
                for label, values in self._view.by_run(values_of(row)).items():
                    run = self._run_of_size(label) if label else self._ids["run"]
                    points.setdefault(run, []).extend(
                        self._entities.Metric(name, x, round(1000 * row["time"]), row["step"])
                        for name, x in ((allowed(name), x) for name, x in values.items())
                        if not self._known[run].has(name, row["step"])
                    )
            for run, found in points.items():
                self._log_points(run, found)
            self._offset = some[-1][0]
            yield sum(map(len, points.values()))

    def _log_points(self, run: str, points: list) -> None:
        for start in range(0, len(points), MOST_METRICS):
            batch = points[start : start + MOST_METRICS]
            self._client.log_batch(run, metrics=batch)
            for point in batch:
                self._known[run].add(point.key, point.step)

    def has_picture(self, step: int) -> bool:
        """Whether the heat map of that step is there."""
        images = " ".join(self._artifacts("images"))
        # the smaller one of its two files is written last
        return re.search(rf"knn_heatmap\Wstep\W{step}\W\S*\.webp", images) is not None

    def picture(self, step: int, pixels: Any) -> None:
        """The heat map, with a step slider among the charts."""
        self._client.log_image(self._ids["run"], pixels, key="knn_heatmap", step=step)

    def table(self, step: int, text: str) -> bool:
        """Whether that table of k-NN accuracies is the newest, and was not there."""
        if step <= int(self._tags.get(TABLE_STEP, "-1")):
            return False
        self._client.log_text(self._ids["run"], text, "knn/table_last.txt")
        self._tag({TABLE_STEP: str(step)})
        return True

    def note(
        self, step: int, top1: Mapping[Subnet, float], floors: Floors, protocol: Mapping[str, Any]
    ) -> None:
        """Describe the run by the newest evaluation and how it was measured."""
        self._tag({NOTE: self._view.note(step, top1, floors, protocol, self._folder)})

    def _tag(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            if value and self._tags.get(key) != value:
                self._client.set_tag(self._ids["run"], key, value)
                self._tags[key] = value

    def artifact(self, path: Path, folder: str = "") -> None:
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(self._ids["run"], str(path), folder or None)

    def missing_files(self) -> list[Path]:
        """What the run is, as far as its folder has it and the store has not."""
        there, folder = self._artifacts(""), RunFolder(self._folder)
        files = (folder.recipe, folder.deepspeed, folder.derived)
        lacking = [path for path in files if path.name not in there and path.is_file()]
        page = folder.report  # written again and again
        if page.is_file() and there.get(page.name) != page.stat().st_size:
            lacking.append(page)
        return lacking

    def _artifacts(self, folder: str) -> dict[str, int]:
        """Path -> bytes."""
        found = self._client.list_artifacts(self._ids["run"], folder or None)
        return {item.path: item.file_size for item in found}

    def close(self, status: Status, end: float | None = None) -> None:
        """End the runs now; at a time in seconds: those that have not ended so before."""
        for run in (self._ids["run"], *self._ids["children"].values()):
            if end is None or self._client.get_run(run).info.status != status:
                self._client.set_terminated(run, status, end and round(1000 * end))

    def _experiment_id(self) -> str:
        if not self._place.experiment:
            return self._place.experiment_id
        found = self._client.get_experiment_by_name(self._place.experiment)
        if found is not None:
            return found.experiment_id
        # a server decides for itself where it keeps files
        file = self._place.file
        where = RunFolder(file.resolve().parent).mlflow_artifacts.as_uri() if file else None
        try:
            return self._client.create_experiment(self._place.experiment, artifact_location=where)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise
        # another run has just made it
        return self._client.get_experiment_by_name(self._place.experiment).experiment_id

    def _find(self) -> Any:
        """The run of the ids, or else the one with their key; None where there is neither."""
        run = self._alive(self._ids["run"]) if "run" in self._ids else None
        if run is None:
            run = self._search(f"tags.{RUN_TAG} = '{self._ids['key']}'")
        if run is None and "run" in self._ids:
            text = f"MLflow knows no run {self._ids['run']}: the resumed run gets a new one"
            say(text)
        if run is None or run.info.run_id != self._ids.get("run"):
            self._ids["children"] = {}
        return run

    def _alive(self, run_id: str) -> Any:
        """The run with that id; None where there is none, or only a deleted one."""
        try:
            run = self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _search(self, condition: str) -> Any:
        return next(
            iter(self._client.search_runs([self.experiment], condition, max_results=1)), None
        )

    def _resume(self, run: Any, params: Mapping[str, str]) -> None:
        """The run is running again; what the recipe changed is noted in tags."""
        self._client.update_run(run.info.run_id, status="RUNNING")
        count = int(run.data.tags.get("resumes", "0")) + 1
        changed = {k: v for k, v in params.items() if run.data.params.get(k, v) != v}
        tags = {f"resume.{count}.{k}": v for k, v in changed.items()} | {"resumes": str(count)}
        for key, value in tags.items():
            self._client.set_tag(run.info.run_id, key, value)

    def _create(self, name: str, tags: Mapping[str, str]) -> Any:
        """A new run, begun when the first row was written (or now)."""
        _, first = next(rows_after(RunFolder(self._folder).metrics), (0, None))
        start = round(1000 * first["time"]) if first else None
        return self._client.create_run(self.experiment, start, dict(tags), run_name=name)

    def _remember(self, run: Any) -> None:
        self._known[run.info.run_id] = self._knowledge(self._client, run)

    def _run_of_size(self, label: str) -> str:
        """The id of the size's run, which is made where there is none."""
        children, parent = self._ids["children"], self._ids["run"]
        if label in children and children[label] in self._known:
            return children[label]
        size, parameters = self._sizes.get(label) or (size_of(label), None)
        run = self._alive(children[label]) if label in children else None
        if run is None:  # one made after the checkpoint that has the ids, or by a call that failed
            below = f"tags.`mlflow.parentRunId` = '{parent}'"
            run = self._search(f"{below} AND tags.`{SIZE}` = '{size}'")
            run = run or self._search(f"{below} AND attributes.run_name = '{label}'")
        tags = self._view.size_tags(size)
        if run is None:
            name = self._view.name(size)
            run = self._create(name, {"mlflow.parentRunId": parent, **tags})
        elif SIZE not in run.data.tags:  # made by a version that called it by its label
            self._client.update_run(run.info.run_id, name=self._view.name(size))
            for key, value in tags.items():
                self._client.set_tag(run.info.run_id, key, value)
        found = {"width": size.width, "depth": size.depth, "parameters": parameters}
        known = {key: str(value) for key, value in found.items() if value is not None}
        self._log_params(run, known)
        self._log_costs(run, size)
        self._remember(run)
        if children.get(label) != run.info.run_id:
            children[label] = run.info.run_id
            self._keep_ids()
        return children[label]

    def _log_costs(self, run: Any, size: Subnet) -> None:
        costs = self._view.costs(size)
        if not costs.keys() <= run.data.metrics.keys():
            begin = run.info.start_time
            points = [self._entities.Metric(name, x, begin, 0) for name, x in costs.items()]
            self._client.log_batch(run.info.run_id, metrics=points)

    def _log_params(self, run: Any, params: Mapping[str, str]) -> None:
        """Log those that the run lacks; none can be changed."""
        missing = {key: value for key, value in params.items() if key not in run.data.params}
        items = [self._entities.Param(key, value) for key, value in missing.items()]
        for start in range(0, len(items), MOST_PARAMS):
            self._client.log_batch(run.info.run_id, params=items[start : start + MOST_PARAMS])

    def _keep_ids(self) -> None:
        if self._keeps_ids:
            mlflow_ids.keep(self._folder, self._ids)
