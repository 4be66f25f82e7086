"""What an MLflow store holds, in a form that two stores can be compared by; and a real server."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

PATIENCE_SECONDS = 240.0  # for programs that start beside other work on a small machine


@dataclass(frozen=True)
class Recorded:
    """A run without its ids. points: metric -> (step, value, timestamp) in the order of steps."""

    parent: str
    status: str
    params: dict[str, str]
    points: dict[str, list[tuple[int, float, int]]]
    files: list[str]
    start: int


def recorded(uri: str, experiment: str) -> dict[str, Recorded]:
    """Name -> run, of all runs of the experiment; fails where two have one name."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(names), sorted(names.values())
    return {
        run.info.run_name: Recorded(
            names.get(run.data.tags.get("mlflow.parentRunId", ""), ""),
            run.info.status,
            dict(run.data.params),
            {
                name: sorted(
                    (m.step, m.value, m.timestamp)
                    for m in client.get_metric_history(run.info.run_id, name)
                )
                for name in run.data.metrics
            },
            _files(client, run.info.run_id, ""),
            run.info.start_time,
        )
        for run in runs
    }


def _files(client: object, run: str, folder: str) -> list[str]:
    found = []
    for item in client.list_artifacts(run, folder or None):
        found += _files(client, run, item.path) if item.is_dir else [item.path]
    # the time and a random name are in those of sliders
    return sorted(re.sub(r"timestamp\W\d+\W[0-9a-f-]+", "*", path) for path in found)


def steps(run: Recorded, metric: str) -> list[int]:
    return [step for step, _, _ in run.points[metric]]


@dataclass
class Server:
    """A real `mlflow server` over a sqlite file; a context that ends it."""

    folder: Path
    port: int = 0
    process: subprocess.Popen | None = None
    log: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    @property
    def uri(self) -> str:
        return f"http://localhost:{self.port}"

    def begin(self) -> None:
        """Start the processes, and return at once."""
        words = [str(Path(sys.executable).parent / "mlflow"), "server", "--workers", "1"]
        words += ["--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        words += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                words, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def start(self) -> Self:
        """Start, and wait until it answers."""
        self.begin()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return self
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.5)
        raise AssertionError("the server does not answer")

    def signal(self, number: int) -> None:
        """Signal all of its processes, which are a group of their own."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
