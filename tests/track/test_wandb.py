"""Weights & Biases without a network: what its files hold; and trainings that it fails under."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wandb

from poa_ds import cli
from poa_ds.evaluate import results
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError
from poa_ds.system.lock import claim
from poa_ds.track import wandb_store
from poa_ds.track.metrics_file import Floors, read_rows
from poa_ds.track.tracker import Tracker
from tests.support import wandb_runs
from tests.support.made_runs import keep_scores, made_run
from tests.track.test_tracker import PROTOCOL, SMALL, knn

PATIENCE_SECONDS = 240.0


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # no key of anybody's
    for name in ("WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield
    wandb.teardown()


def start(folder: Path, **options: object) -> Tracker:
    recipe = replace(Recipe(), tracking="wandb")
    return Tracker.start(recipe, output_dir=folder, is_main=True, **options)


def close(tracker: Tracker) -> None:
    assert tracker.flush(PATIENCE_SECONDS)
    tracker.close(timeout_seconds=PATIENCE_SECONDS)


def runs(folder: Path) -> dict[str, wandb_runs.OfflineRun]:
    wandb.teardown()  # its program writes behind the back of this one
    return wandb_runs.runs(folder / "wandb")


def test_a_run_goes_on_under_its_id_and_every_point_is_there_once(tmp_path: Path) -> None:
    first = start(tmp_path)
    for step in range(8):
        first.log(step, {"loss": step / 4})
    first.log_knn(8, knn(0.0), Floors(27.0), PROTOCOL, table="a <table>")
    kept = first.ids
    row = ScoreRow(
        *("linear", 8, str(SMALL), "top1", 70.5, 1.5, "val", "", {}, 3.0), {"crop": 64}, "2.9"
    )
    results.append(tmp_path / "evaluations.jsonl", row)
    close(first)
    again = start(tmp_path, resumed_ids=kept, first_step=5)  # the steps behind 5 are made again
    for step in range(6, 10):
        again.log(step, {"loss": 100.0 + step})
    again.log_knn(10, knn(2.0), Floors(27.0), PROTOCOL, table="another")
    close(again)
    assert again.ids == kept and set(kept) == {"wandb"}
    found = runs(tmp_path)
    training, size = found[kept["wandb"]], found[f"{kept['wandb']}-{SMALL.label}"]
    wanted = [(row["step"], row["loss"]) for row in read_rows(tmp_path / "metrics.jsonl")[:-1]]
    assert training.points("loss") == wanted and len(wanted) == 10
    assert training.points("knn/raw_pixels") == [(10, 27.0)]
    assert size.points("knn_top1") == [(10, 53.0)]  # that of step 8 is gone
    assert size.points("linear_top1") == [(8, 70.5)]
    assert {run.group for run in found.values()} == {training.group} != {""}
    assert (training.job_type, size.job_type, training.project) == ("training", "size", "poa")
    assert (training.name, size.name) == (tmp_path.name, str(SMALL))
    assert training.config["schedule.epochs"] == Recipe().schedule.epochs
    assert size.config["width"] == SMALL.width and size.config["gflops"] > 0
    assert {run.exit_code for run in found.values()} == {0}
    pictures = list(tmp_path.glob(f"wandb/*-{training.id}/files/media/images/knn_heatmap_*.png"))
    assert [path.read_bytes()[:4] for path in pictures] == [b"\x89PNG"]
    [page] = tmp_path.glob(f"wandb/*-{training.id}/files/media/html/knn_table_*.html")
    assert page.read_text() == "<pre>another</pre>"


def test_what_raises_for_a_while_is_said_once_and_loses_no_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = start(tmp_path)
    assert tracker.flush(PATIENCE_SECONDS)
    tracker._wandb._first_pause_seconds = 0.1
    real, broken = wandb.Run.log, []

    def failing(self: object, row: dict) -> None:
        if len(broken) < 2:
            broken.append(row)
            raise wandb.Error("the service process is not running")
        real(self, row)

    monkeypatch.setattr(wandb.Run, "log", failing)
    for step in range(5):
        tracker.log(step, {"loss": 1.0 + step})
    close(tracker)
    said = capsys.readouterr().err
    assert said.count("Weights & Biases failed") == 1 and "Weights & Biases works again" in said
    assert "training goes on, every metric is in" in said
    [run] = runs(tmp_path).values()
    assert run.points("loss") == [(step, 1.0 + step) for step in range(5)]


def test_without_the_package_training_goes_on_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = start(tmp_path)
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
    tracker.close(timeout_seconds=PATIENCE_SECONDS)
    said = capsys.readouterr().err
    assert said.count("Weights & Biases failed (given up; training goes on") == 1
    assert f"poa-ds wandb {tmp_path}" in said
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3


def test_without_a_key_the_command_writes_files_for_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["wandb", str(tmp_path)]) == UserError.exit_status
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "config.yaml").write_text("evaluation: {report_k: 20}\n")
    rows = [{"step": 1, "time": 5.0, "loss": 2.0, "knn_top1/w0384_d12": 51.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        assert cli.main(["wandb", str(tmp_path)]) == 0, capsys.readouterr().err
    told = capsys.readouterr()
    assert "no key of Weights & Biases here" in told.err
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in told.out
    found = runs(tmp_path)
    assert sorted(run.job_type for run in found.values()) == ["size", "training"]
    assert all(run.points("knn_top1") in ([], [(1, 51.0)]) for run in found.values())
    holder = claim(tmp_path / "wandb")
    assert cli.main(["wandb", str(tmp_path)]) == UserError.exit_status
    assert "is being written by another process" in capsys.readouterr().err
    os.close(holder)


def test_the_command_makes_all_again_and_says_what_was_not_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_run(
        tmp_path / "run", "backbone.names={}", "backbone.depth.max=2", evaluations=2, steps=6
    )
    keep_scores(folder, step=3)
    for _ in range(2):  # what the first has written is gone behind the second
        assert cli.main(["wandb", str(folder)]) == 0, capsys.readouterr().err
    found = runs(folder)
    [training] = (run for run in found.values() if run.job_type == "training")
    assert training.exit_code == 1  # the run has 12 steps
    assert {row["rows_through"] for row in training.rows if "rows_through" in row} >= {*range(1, 7)}
    [page] = folder.glob(f"wandb/*-{training.id}/files/media/html/knn_table_*.html")
    assert "32x2" in page.read_text()
    for run in found.values():  # a score of step 3 comes behind the rows, and moves no place
        rows = [row["rows_through"] for row in run.rows if "rows_through" in row]
        assert rows == sorted(rows) and rows[-1] == 6
    ended = []

    def late(self: object, **_: object) -> None:
        ended.append(self)
        raise TimeoutError

    monkeypatch.setattr(wandb.Run, "finish", late)
    assert cli.main(["wandb", str(folder)]) == UserError.exit_status
    assert "not all was sent in time" in capsys.readouterr().err and len(ended) == len(found)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    assert cli.main(["wandb", str(folder)]) == UserError.exit_status
    assert "WANDB_MODE is disabled" in capsys.readouterr().err


def test_an_id_is_the_checkpoints_else_the_folders_else_new(tmp_path: Path) -> None:
    first = wandb_store.known_id(tmp_path, None)
    assert wandb_store.known_id(tmp_path, {}) == first
    assert wandb_store.known_id(tmp_path, {"wandb": "a1"}) == "a1" != first
    assert wandb_store.known_id(tmp_path, {}) == "a1" != wandb_store.known_id(tmp_path, None)
    (tmp_path / "wandb_id.txt").write_text("../elsewhere\n")
    with pytest.raises(UserError, match="is damaged: remove it"):
        wandb_store.known_id(tmp_path, {})


@pytest.mark.slow  # wandb itself waits for ten seconds
def test_a_server_that_never_answers_costs_no_step_and_no_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://localhost:{server.getsockname()[1]}")
        tracker = start(tmp_path)
        taken = []
        for step in range(200):
            begin = time.perf_counter()
            tracker.log(step, {"loss": 1.0})
            taken.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        tracker.close(timeout_seconds=30.0)
        ended = time.perf_counter() - begin
    # the median: other work on the machine may stall a single call
    assert np.median(taken) < 0.01 and len(read_rows(tmp_path / "metrics.jsonl")) == 200
    assert ended < 60  # a busy machine's half of it beside those 30 s
    said = capfd.readouterr().err
    assert said.count("Weights & Biases failed") == 1, said
    assert said.count(f"poa-ds wandb {tmp_path}") == 1, said
