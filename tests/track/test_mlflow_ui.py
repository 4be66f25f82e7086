"""poa-ds mlflow: its links, its errors, and the real server with the real page in Chromium."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs

import psutil
import pytest

from poa_ds.cli import main
from poa_ds.system.addresses import without_passwords
from poa_ds.system.errors import UserError
from poa_ds.system.processes import free_port
from poa_ds.track import mlflow_ui
from poa_ds.track.mlflow_ui import Place, chosen_port
from tests.run.test_training import ROOT, environment
from tests.support import chromium
from tests.support.made_runs import made_run

PATIENCE_SECONDS = 300.0
SIZES = (
    *("backbone.width={min: 32, max: 48, step: 16}", "backbone.depth={min: 2, max: 3, step: 1}"),
    "backbone.names={small: 32x2, large: 48x3}",
)


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert main(["mlflow", *words]) == UserError.exit_status
    return capsys.readouterr().err


def test_the_link_names_every_size_in_order_and_is_not_taken_for_a_secret() -> None:
    link = Place("7", "parent", ("b", "a", "c")).curves("http://localhost:5000")
    assert without_passwords(link) == link and not re.search(r"[\s\"\[\]{}]", link)
    page, _, query = link.partition("?")
    given = {name: values[0] for name, values in parse_qs(query).items()}
    assert page == "http://localhost:5000/#/metric"
    assert json.loads(given["runs"]) == ["b", "a", "c"]
    assert json.loads(given["experiments"]) == ["7"]
    assert json.loads(given["plot_metric_keys"]) == [json.loads(given["metric"])] == ["knn_top1"]
    assert given["workflowType"] == "machine_learning"


def test_sizes_are_in_the_order_of_width_and_depth() -> None:
    def run(width: str, depth: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(params={"width": width, "depth": depth}))

    ordered = [run("32", "2"), run("32", "12"), run("128", "(3, 4)"), run("128", "(3, 10)")]
    assert sorted(ordered[::-1], key=mlflow_ui._size) == ordered
    assert mlflow_ui._size(SimpleNamespace(data=SimpleNamespace(params={}))) == (0, [])


def test_a_port_in_use_is_named_and_the_usual_one_gives_way(
    busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=rf"port {busy} is in use .* --port \d+"):
        chosen_port(busy)
    monkeypatch.setattr(mlflow_ui, "USUAL_PORT", busy)
    assert chosen_port(None) != busy
    with pytest.raises(UserError, match="--port 70000: a port is a number from 1 to 65535"):
        chosen_port(70_000)


def test_a_folder_that_is_no_run_or_has_no_store_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"{tmp_path} is no output directory of a run" in refused(capsys, str(tmp_path))
    folder = made_run(tmp_path / "run", "tracking=none", evaluations=1)
    said = refused(capsys, str(folder))
    assert "has no MLflow store" in said and f"poa-ds mlflow-sync {folder}" in said
    monkeypatch.setattr(mlflow_ui.importlib.util, "find_spec", lambda name: None)
    assert "mlflow is not installed here: make setup" in refused(capsys, str(folder))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four sizes in a store of its own."""
    folder = made_run(tmp_path_factory.mktemp("made") / "run", *SIZES, evaluations=3, steps=40)
    assert main(["mlflow-sync", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_store_without_the_run_and_a_server_that_is_away_are_said(
    tracked: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = made_run(tmp_path / "other", f"mlflow.uri=sqlite:///{tracked}/mlflow.db")
    assert f"poa-ds mlflow-sync {other} brings it there" in refused(capsys, str(other))
    login = "me:word"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{login}@localhost:{free_port()}")
    said = refused(capsys, str(tracked))
    assert "MLflow at http://localhost:" in said and "is its server there?" in said
    assert "word" not in said


@pytest.mark.slow
def test_the_page_behind_the_link_has_the_curves_and_ctrl_c_leaves_no_process(
    tracked: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it serves, it is the server that another call is told of: that one prints links."""
    words = ["mlflow", str(tracked), "--no-open", "--port", str(free_port())]
    with subprocess.Popen(
        [sys.executable, "-m", "poa_ds.cli", *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            link = next(line.strip() for line in process.stdout if "/#/metric?" in line)
            absent = chromium.missing()
            shown = "" if absent else chromium.dumped(link, folder=tmp_path, seconds=60)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", link.partition("/#")[0])
            assert main(["mlflow", str(tracked), "--no-open"]) == 0
            assert link in capsys.readouterr().out
            children = psutil.Process(process.pid).children(recursive=True)
            assert children
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 0
            _, alive = psutil.wait_procs(children, PATIENCE_SECONDS)
            assert not alive
        finally:
            process.kill()
    chromium.check()
    row = [json.loads(line) for line in (tracked / "knn.jsonl").open()][-1]
    for by_k in row["knn"].values():
        assert f"{by_k['20']:g} (step={row['step']})" in shown
