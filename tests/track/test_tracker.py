"""Tracking against a real sqlite store, against dead servers, and without MLflow at all."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Mlflow, Recipe
from poa_ds.system.errors import UserError
from poa_ds.track import mlflow_client
from poa_ds.track.metrics_file import Floors, read_rows
from poa_ds.track.mlflow_view import View
from poa_ds.track.tracker import Tracker

SMALL, LARGE = Subnet(384, 12), Subnet(1024, 24)
FLOORS = Floors(27.0, {SMALL: 50.0, LARGE: 52.0})
PROTOCOL = {"k": 20, "bank": {"images": 500}, "queries": {"images": 100}}
ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120.0  # for a store that is made beside other work on a small machine


def recipe(uri: str = "", tracking: str = "mlflow") -> Recipe:
    return replace(Recipe(), tracking=tracking, mlflow=Mlflow(uri=uri, run_name="test"))


def start(folder: Path, chosen: Recipe | None = None, **options: object) -> Tracker:
    sizes = {"sizes": [SMALL, LARGE], "parameters": {SMALL: 21_000_000}}
    return Tracker.start(chosen or recipe(), output_dir=folder, is_main=True, **(sizes | options))


def knn(gain: float) -> dict[Subnet, dict[int, float]]:
    return {
        SMALL: {10: 50.0 + gain, 20: 51.0 + gain},
        LARGE: {10: 55.0 + gain, 20: 56.0 + gain},
    }


@dataclass
class Store:
    """A run of eight steps that was killed, and was resumed at step 5 up to step 9."""

    folder: Path
    uri: str
    ids: dict
    resumed_ids: dict


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("a run with spaces")
    picture = folder / "picture.txt"
    picture.write_text("kept")
    tracker = start(folder)
    tracker.log_knn(0, knn(0), FLOORS, PROTOCOL)
    for step in range(8):
        loss = float("nan") if step in (2, 3) else 8.0 - step
        tracker.log(step, {"loss": loss, "grad/backbone(norm)": 1.0})
    tracker.artifact(picture, "files")
    assert tracker.flush(PATIENCE_SECONDS)
    ids = tracker.ids
    first = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_run(ids["run"])
    assert first.info.status == "RUNNING"
    # the process is killed here: nothing is closed
    changed = replace(recipe(), seed=7)
    resumed = start(folder, changed, resumed_ids=ids, first_step=5)
    for step in range(5, 9):
        resumed.log(step, {"loss": 8.0 - step})
    resumed.log_knn(9, knn(10), FLOORS, PROTOCOL)
    resumed.close(timeout_seconds=PATIENCE_SECONDS)
    yield Store(folder, f"sqlite:///{folder}/mlflow.db", ids, resumed.ids)


def test_the_run_has_every_point_once_over_a_kill_and_a_resume(store: Store) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    history = client.get_metric_history(store.ids["run"], "loss")
    finite = [0, 1, 4, 5, 6, 7, 8]
    assert [(m.step, m.value) for m in history] == [(step, 8.0 - step) for step in finite]
    rows = read_rows(store.folder / "metrics.jsonl")
    assert [r["step"] for r in rows if "loss" in r] == finite


def test_values_that_are_not_finite_are_counted_not_drawn(store: Store) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    history = client.get_metric_history(store.ids["run"], "nonfinite/loss")
    assert [(m.step, m.value) for m in history] == [(2, 1.0), (3, 2.0)]


def test_a_size_without_finite_features_is_not_the_best_of_the_note(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracker = start(tmp_path)
    tracker.log_knn(1, {SMALL: {20: float("nan")}, LARGE: {20: 65.0}}, FLOORS, PROTOCOL)
    tracker.close(timeout_seconds=PATIENCE_SECONDS)
    run = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(tracker.ids["run"])
    note = run.data.tags["mlflow.note.content"]
    [best] = [line for line in note.splitlines() if "the best" in line]
    assert "1024x24" in best and "65.0" in best and "nan" not in note


def test_each_size_has_a_run_of_its_own_below_the_run(store: Store) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    children = store.resumed_ids["children"]
    assert set(children) == {"w0384_d12", "w1024_d24"}
    child = client.get_run(children["w0384_d12"])
    assert child.data.tags["mlflow.parentRunId"] == store.ids["run"]
    assert child.data.params == {"width": "384", "depth": "12", "parameters": "21000000"}
    assert child.data.metrics == {
        "knn_top1": 61.0, "knn_k10": 60.0, "knn_k20": 61.0, "knn_random": 50.0,
        **View(Recipe()).costs(SMALL),
    }  # fmt: skip
    assert child.info.run_name == "384x12" and child.data.tags["poa.size"] == "384x12"
    curve = client.get_metric_history(children["w0384_d12"], "knn_top1")
    assert [(m.step, m.value) for m in curve] == [(0, 51.0), (9, 61.0)]
    parent = client.get_run(store.ids["run"]).data.metrics
    assert parent["knn/best"] == 66.0 and parent["knn/raw_pixels"] == 27.0
    assert not [name for name in parent if name.startswith("knn_")]


def test_one_run_is_resumed_and_ends_finished_with_what_changed(store: Store) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    assert store.resumed_ids["run"] == store.ids["run"]
    run = client.get_run(store.ids["run"])
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "0" and run.data.tags["resume.1.seed"] == "7"
    assert run.data.params["batch.slots"] == "32"
    assert "bank {'images': 500}" in run.data.tags["mlflow.note.content"]
    assert client.get_run(store.resumed_ids["children"]["w1024_d24"]).info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 3


def test_heat_maps_and_files_lie_in_the_output_directory(store: Store) -> None:
    kept = {path.name for path in (store.folder / "mlartifacts").rglob("*")}
    assert "picture.txt" in kept and not [name for name in kept if name.startswith("heatmap")]
    sliders = [name for name in kept if name.startswith("knn_heatmap") and name.endswith(".png")]
    assert len(sliders) == 2  # steps 0 and 9


def test_points_that_the_store_missed_are_filled_in_on_resume(store: Store) -> None:
    from mlflow import MlflowClient

    folder = store.folder / "second"
    alone = start(folder, recipe(tracking="none"))
    for step in range(3):
        alone.log(step, {"loss": float(step)})
    alone.log_knn(2, knn(0), None, PROTOCOL)
    alone.close()
    tracker = start(folder, recipe(store.uri), resumed_ids={}, first_step=3)
    tracker.log(3, {"loss": 3.0})
    tracker.close(timeout_seconds=PATIENCE_SECONDS)
    client = MlflowClient(store.uri)
    history = client.get_metric_history(tracker.ids["run"], "loss")
    assert [m.step for m in history] == [0, 1, 2, 3]
    children = tracker.ids["children"]
    assert client.get_run(children["w1024_d24"]).data.metrics["knn_top1"] == 56.0
    assert json.loads((folder / "mlflow.json").read_text()) == tracker.ids


def test_ids_that_no_checkpoint_holds_are_found_beside_the_metrics(store: Store) -> None:
    folder = store.folder / "third"
    tracker = start(folder, recipe(store.uri))
    tracker.log(0, {"loss": 1.0})
    tracker.close(timeout_seconds=PATIENCE_SECONDS)
    again = start(folder, recipe(store.uri), resumed_ids={}, first_step=1)
    again.close("FAILED", timeout_seconds=PATIENCE_SECONDS)
    assert again.ids["run"] == tracker.ids["run"]
    fresh = start(folder, recipe(store.uri))
    fresh.close(timeout_seconds=PATIENCE_SECONDS)
    assert fresh.ids["run"] != tracker.ids["run"]


def test_a_run_that_the_store_does_not_know_is_replaced(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.folder / "fourth"
    tracker = start(folder, recipe(store.uri), resumed_ids={"run": "gone", "children": {}})
    tracker.log(0, {"loss": 1.0})
    tracker.close(timeout_seconds=PATIENCE_SECONDS)
    assert tracker.ids["run"] != "gone"
    assert "knows no run gone" in capsys.readouterr().err


def closed_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_dead_server_is_said_once_and_costs_no_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = start(tmp_path, recipe(f"http://localhost:{closed_port()}"))
    seconds = []
    for step in range(200):
        begin = time.perf_counter()
        tracker.log(step, {"loss": 1.0, "lr": 0.1})
        seconds.append(time.perf_counter() - begin)
    tracker.log_knn(200, knn(0), FLOORS, PROTOCOL)
    tracker.artifact(tmp_path / "absent")
    assert not tracker.flush(timeout_seconds=0.5)
    tracker.close("FAILED", timeout_seconds=20)
    # the median: other work on the machine may stall a single call
    assert np.median(seconds) < 0.01
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 201
    errors = capsys.readouterr().err
    assert errors.count("MLflow failed") == 1 and "metrics.jsonl" in errors
    assert "has not taken the last" in errors


def test_a_server_that_never_answers_cannot_hold_up_the_end(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        tracker = start(tmp_path, recipe(f"http://localhost:{silent.getsockname()[1]}"))
        tracker.log(0, {"loss": 1.0})
        begin = time.perf_counter()
        tracker.close(timeout_seconds=0.5)
        assert time.perf_counter() - begin < 5


def test_without_tracking_mlflow_is_never_imported(tmp_path: Path) -> None:
    program = f"""
import sys
from dataclasses import replace
from pathlib import Path
from poa_ds.recipe.tree import Recipe
from poa_ds.track.tracker import Tracker
recipe = replace(Recipe(), tracking="none")
tracker = Tracker.start(recipe, output_dir=Path({str(tmp_path)!r}), is_main=True)
tracker.log(0, {{"loss": 1.0}})
assert tracker.flush() and tracker.ids == {{}}
tracker.close()
assert not {{"mlflow", "matplotlib", "torch"}} & set(sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert read_rows(tmp_path / "metrics.jsonl")[0]["loss"] == 1.0


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tracker = Tracker.start(recipe(), output_dir=tmp_path / "out", is_main=False)
    tracker.log(0, {"loss": 1.0})
    tracker.log_knn(0, knn(0), FLOORS, PROTOCOL)
    tracker.artifact(tmp_path)
    assert tracker.flush() and tracker.ids == {}
    tracker.close()
    assert not list(tmp_path.iterdir())


def test_an_unwritable_output_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out"):
        start(tmp_path / "file" / "out", recipe(tracking="none"))


def test_a_full_disk_is_said_once_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = start(tmp_path, recipe(tracking="none"))
    tracker.log(0, {"loss": 8.0})
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(tracker._metrics, "_file", full)
        monkeypatch.setattr(full, "truncate", lambda size: None, raising=False)
        tracker.log(1, {"loss": 7.0})
        tracker.log(2, {"loss": 6.0})
        monkeypatch.undo()
    tracker.log(3, {"loss": 5.0})
    tracker.close()
    errors = capsys.readouterr().err
    assert errors.count("No space left") == 1 and errors.count("written again") == 1
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(s, 8.0 - s) for s in range(4)]


def test_environment_variables_of_the_user_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    tracker = start(tmp_path, recipe(f"http://localhost:{closed_port()}"))
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    tracker.close(timeout_seconds=0)


def test_a_fork_waits_for_the_import_of_mlflow() -> None:
    held = threading.Event()

    def importing() -> None:
        with mlflow_client.IMPORTING:
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=importing)
    thread.start()
    held.wait()
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert time.perf_counter() - begin > 0.2
    os.waitpid(child, 0)
    thread.join()
