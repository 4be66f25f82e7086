"""One training run in an MLflow store: the run, a run for each size, points, pictures, files.

Every call may take seconds and may raise: tracking.py makes them behind the training's back. The
only importer of mlflow, and only when a store is opened.
"""

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from poa_ds.config import Config
from poa_ds.metrics_file import Row, split_by_size, values_of
from poa_ds.space import Subnet
from poa_ds.typed_yaml import plain

Status = Literal["FINISHED", "FAILED", "KILLED"]
IDS = "mlflow.json"  # in the output directory: the runs' ids, before any checkpoint has them

# MLflow's limits for one log_batch call
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000

# A fork (data loader workers) in the middle of an import leaves that module's lock taken for ever
# in the child, so forks wait for the import of mlflow.
IMPORTING = threading.RLock()
os.register_at_fork(
    before=IMPORTING.acquire,
    after_in_parent=IMPORTING.release,
    after_in_child=IMPORTING.release,
)


def open_store(
    config: Config,
    folder: Path,
    ids: dict[str, Any],
    sizes: Mapping[Subnet, int | None],
    rows: Sequence[Row],
) -> "MlflowStore":
    """The store of a recipe, mlflow being imported on the way; see MlflowStore for the rest."""
    with IMPORTING:
        import PIL.Image  # noqa: F401 - mlflow would import it later
        from mlflow import MlflowClient, entities

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    client = MlflowClient(config.mlflow.uri or f"sqlite:///{folder}/mlflow.db")
    return MlflowStore(client, entities, config, folder, ids=ids, sizes=sizes, rows=rows)


class MlflowStore:
    """One run and the runs of its sizes in MLflow. Every call may take seconds, and may raise."""

    def __init__(
        self,
        client: Any,
        entities: Any,
        config: Config,
        folder: Path,
        *,
        ids: dict[str, Any],
        sizes: Mapping[Subnet, int | None],
        rows: Sequence[Row],
    ) -> None:
        """Opens the run of `ids`, or a new one whose ids it puts there; adds the `rows` it lacks.

        client, entities: an mlflow.MlflowClient and mlflow.entities. sizes: with their parameters.
        """
        self._client, self._entities = client, entities
        self._config, self._folder, self._ids = config, folder, ids
        self._sizes = {size.label: (size, parameters) for size, parameters in sizes.items()}
        self._last: dict[str, dict[str, int]] = {}
        self._note = ""
        self._experiment = self._experiment_id()
        if not (ids.get("run") and self._reopened()):
            ids.clear()
            ids |= {"run": self._created(config.mlflow.run_name or self._folder.name, {})}
            ids["children"] = {}
            self._log_params(ids["run"], _flat(plain(config)))
        self._keep_ids()
        for row in rows:
            self.row(row)

    def row(self, row: Row) -> None:
        """The points of one line of metrics.jsonl, in the run and in the runs of its sizes."""
        for label, values in split_by_size(values_of(row)).items():
            run = self._ids["run"] if not label else self._run_of_size(label)
            last = self._last[run]
            points = [
                self._entities.Metric(name, x, round(1000 * row["time"]), row["step"])
                for name, x in ((_allowed(name), x) for name, x in values.items())
                if row["step"] > last.get(name, -1)
            ]
            for start in range(0, len(points), MOST_METRICS):
                self._client.log_batch(run, metrics=points[start : start + MOST_METRICS])
            last.update({point.key: point.step for point in points})

    def picture(self, step: int, figure: Any, pixels: Any) -> None:
        """The heat map twice: with a step slider among the charts, and as a file."""
        run = self._ids["run"]
        self._client.log_image(run, pixels, key="knn_heatmap", step=step)
        self._client.log_figure(run, figure, f"knn/heatmap_{step:07d}.png")

    def protocol(self, protocol: Mapping[str, Any]) -> None:
        """How the k-NN numbers were measured, shown as the run's description."""
        note = "k-NN: " + ", ".join(f"{key} {value}" for key, value in protocol.items())
        if note != self._note:
            self._client.set_tag(self._ids["run"], "mlflow.note.content", note)
            self._note = note

    def artifact(self, path: Path, folder: str) -> None:
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(self._ids["run"], str(path), folder or None)

    def close(self, status: Status) -> None:
        for run in (self._ids["run"], *self._ids["children"].values()):
            self._client.set_terminated(run, status)

    def _experiment_id(self) -> str:
        name, uri = self._config.mlflow.experiment, self._config.mlflow.uri
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        local = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:///") else ""
        folder = Path(local).resolve().parent if local else self._folder
        # a server decides for itself where it keeps files
        place = None if uri and not local else (folder / "mlartifacts").as_uri()
        return self._client.create_experiment(name, artifact_location=place)

    def _reopened(self) -> bool:
        """Whether the run of the ids is there; then it is running again, changed keys noted."""
        try:
            run = self._client.get_run(self._ids["run"])
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise
            text = f"MLflow knows no run {self._ids['run']}: the resumed run gets a new one"
            print(text, file=sys.stderr, flush=True)
            return False
        self._client.update_run(run.info.run_id, status="RUNNING")
        self._last[run.info.run_id] = _last_steps(run)
        count = int(run.data.tags.get("resumes", "0")) + 1
        params = _flat(plain(self._config))
        changed = {k: v for k, v in params.items() if run.data.params.get(k, v) != v}
        tags = {"resumes": str(count)} | {f"resume.{count}.{k}": v for k, v in changed.items()}
        for key, value in tags.items():
            self._client.set_tag(run.info.run_id, key, value)
        return True

    def _created(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment, run_name=name, tags=dict(tags))
        self._last[run.info.run_id] = {}
        return run.info.run_id

    def _run_of_size(self, label: str) -> str:
        children = self._ids["children"]
        if label not in children:
            children[label] = self._created(label, {"mlflow.parentRunId": self._ids["run"]})
            size, parameters = self._sizes.get(label, (None, None))
            if size is not None:
                found = {"width": size.width, "depth": size.depth, "parameters": parameters}
                known = {key: str(value) for key, value in found.items() if value is not None}
                self._log_params(children[label], known)
            self._keep_ids()
        if children[label] not in self._last:
            self._last[children[label]] = _last_steps(self._client.get_run(children[label]))
        return children[label]

    def _log_params(self, run: str, params: Mapping[str, str]) -> None:
        items = [self._entities.Param(key, value) for key, value in params.items()]
        for start in range(0, len(items), MOST_PARAMS):
            self._client.log_batch(run, params=items[start : start + MOST_PARAMS])

    def _keep_ids(self) -> None:
        beside = self._folder / f"{IDS}.partial"
        beside.write_text(json.dumps(self._ids))
        beside.replace(self._folder / IDS)


def _last_steps(run: Any) -> dict[str, int]:
    return {metric.key: metric.step for metric in run.to_proto().data.metrics}


def _allowed(name: str) -> str:
    """The metric's name without the characters that MLflow refuses."""
    return re.sub(r"[^\w\-./ :]", "_", name)


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Dotted keys and short texts, as MLflow's parameters are."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        below = _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else None
        flat |= {f"{path}{key}": str(value)[:LONGEST_PARAM]} if below is None else below
    return flat
