"""Real MLflow servers and disks that fail under a real training run, which does not notice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from poa_ds.recipe.tree import Mlflow, Recipe
from poa_ds.track.metrics_file import read_rows
from poa_ds.track.tracker import Tracker
from tests.run.test_training import ROOT, command, environment
from tests.support.mlflow_runs import PATIENCE_SECONDS, Recorded, Server, recorded, steps
from tests.support.shards import make_shards

STEPS = 120


def start(folder: Path, uri: str) -> Tracker:
    recipe = replace(Recipe(), mlflow=Mlflow(uri=uri, run_name="test"))
    return Tracker.start(recipe, output_dir=folder, is_main=True)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


@contextlib.contextmanager
def answering(seconds: float, status: int) -> Iterator[str]:
    """The address of a server that thinks for a while and then answers with that status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(seconds)
            self.send_response(status)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("seconds", "status"), [(0.0, 500), (3.0, 500), (0.0, 404)])
def test_a_server_that_is_slow_and_broken_is_said_once_and_costs_no_step(
    seconds: float, status: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with answering(seconds, status) as uri:
        tracker = start(tmp_path, uri)
        taken = []
        for step in range(200):
            begin = time.perf_counter()
            tracker.log(step, {"loss": 1.0})
            taken.append(time.perf_counter() - begin)
        said = []

        def heard() -> bool:
            said.append(capfd.readouterr().err)
            return "MLflow failed" in said[-1]

        assert eventually(heard)
        tracker.close("FAILED", timeout_seconds=10)
    # the median: other work on the machine may stall a single call
    assert np.median(taken) < 0.01
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 200
    lines = ("".join(said) + capfd.readouterr().err).splitlines()
    assert len([line for line in lines if "MLflow failed" in line]) == 1, lines
    assert "poa-ds mlflow-sync" in lines[-1] and len(lines) == 2, lines


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "small disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted: needs root and CAP_SYS_ADMIN")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_store_on_a_disk_that_fills_up_gets_the_points_when_there_is_room(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = start(tmp_path / "out", f"sqlite:///{small_disk}/mlflow.db")
    tracker.log(0, {"loss": 9.0})
    assert tracker.flush(PATIENCE_SECONDS)
    tracker._background._first_pause_seconds = 0.5
    with open(small_disk / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(4096)):
            pass
    for step in range(1, 200):
        tracker.log(step, {f"metric {n}": step / 7 for n in range(3)})
    assert not tracker.flush(2.0)
    (small_disk / "ballast").unlink()
    assert tracker.flush(PATIENCE_SECONDS)
    tracker.close(timeout_seconds=PATIENCE_SECONDS)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "MLflow failed" in lines[0] and "is full" in lines[0], lines
    assert lines[1] == "MLflow works again"
    run = recorded(f"sqlite:///{small_disk}/mlflow.db", "poa")["test"]
    assert steps(run, "metric 2") == list(range(1, 200)) and run.status == "FINISHED"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "train", 60)
    make_shards(root / "val", 21)
    return root


def train(
    shards: Path, out: Path, uri: str, watch: Callable[[int], None] = lambda step: None
) -> str:
    """What a real run of STEPS steps printed; watch(row) is called as metrics are written."""
    words = command(shards, out, f"schedule.steps_per_epoch={STEPS}", "tracking=mlflow")
    words += [f"mlflow.uri={uri}", "mlflow.run_name=run", "data.workers=0"]
    words[2:3] = ["tests.distributed.programs.recorded", str(out / "mlflow.json")]
    with subprocess.Popen(
        words,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        following = threading.Thread(target=follow, args=(process, out / "metrics.jsonl", watch))
        following.start()
        printed = process.stdout.read()
        following.join()
    assert process.returncode == 0, printed
    return printed


def follow(process: subprocess.Popen, metrics: Path, watch: Callable[[int], None]) -> None:
    """watch(row) as rows are there: a log has no line for each of many quick steps."""
    seen = 0
    while process.poll() is None:
        rows = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        for row in range(seen, rows):
            watch(row)
        seen = max(seen, rows)
        time.sleep(0.02)


def same_everywhere(run: Recorded) -> dict[str, list[tuple[int, float]]]:
    """The points that are equal in every run of the recipe."""
    kinds = ("loss/", "gradient_norm/", "schedule/", "size/", "health/", "knn", "skipped")
    return {
        name: [(step, value) for step, value, _ in points]
        for name, points in run.points.items()
        if name.startswith(kinds)
    }


def compare(runs: dict[str, Recorded], whole: dict[str, Recorded]) -> None:
    """The same runs with the same points, as far as they do not depend on the clock."""
    assert runs.keys() == whole.keys()
    for name, run in runs.items():
        assert same_everywhere(run) == same_everywhere(whole[name]), name
        assert (run.parent, run.status) == (whole[name].parent, whole[name].status)
        assert run.files == whole[name].files, name
        assert run.points.keys() == whole[name].points.keys()


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recorded]:
    """What MLflow has of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    printed = train(shards, out, "")
    assert "MLflow failed" not in printed, printed
    runs = recorded(f"sqlite:///{out}/mlflow.db", "photos")
    assert len(runs) == 1 + 4 and steps(runs["run"], "loss/total") == list(range(1, STEPS + 1))
    return runs


def sync(out: Path) -> str:
    words = [sys.executable, "-m", "poa_ds.cli", "mlflow-sync", str(out)]
    done = subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def known_run(out: Path) -> bool:
    ids = out / "mlflow.json"
    return ids.exists() and "run" in json.loads(ids.read_text())


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_is_filled_later(
    shards: Path, whole: dict[str, Recorded], tmp_path: Path
) -> None:
    """It is stopped (SIGSTOP) and killed while it records, and is back after the run."""
    out = tmp_path / "out"
    with Server(tmp_path / "server") as server:
        server.start()
        recording: list[int] = []

        def watch(row: int) -> None:
            if known_run(out):
                recording.append(row)
                if len(recording) == 10:
                    server.signal(signal.SIGSTOP)
                if len(recording) == 20:
                    server.kill()

        printed = train(shards, out, server.uri, watch)
        assert len(recording) > 20, "the server has never made the run"
        assert printed.count("MLflow failed") == 1, printed
        assert f"poa-ds mlflow-sync {out}" in printed and "Traceback" not in printed
        rows = [row for row in read_rows(out / "metrics.jsonl") if "loss/total" in row]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        server.start()
        ids = json.loads((out / "mlflow.json").read_text())
        assert "loss/total" not in recorded(server.uri, "photos")["run"].points or len(
            steps(recorded(server.uri, "photos")["run"], "loss/total")
        ) < len(rows)
        assert "added 0 points" not in sync(out)
        runs = recorded(server.uri, "photos")
        compare(runs, whole)
        assert json.loads((out / "mlflow.json").read_text())["run"] == ids["run"]
        assert "added 0 points, 0 pictures, 0 tables and 0 files" in sync(out)
        assert recorded(server.uri, "photos") == runs
