"""Servers and disks that fail under a tracker, which does not notice."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from poa_ds.config import Config
from poa_ds.metrics_file import read_rows
from poa_ds.recipe import Mlflow
from poa_ds.tracking import Tracker
from tests.mlflow_runs import PATIENCE_SECONDS, recorded, steps


def start(folder: Path, uri: str) -> Tracker:
    config = replace(Config(), mlflow=Mlflow(uri=uri, run_name="test"))
    return Tracker.start(config, output_dir=folder, is_main=True)


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
