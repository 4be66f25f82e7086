"""Where metrics go: the recipe, MLflow's own variables, a file; and passwords on the way there."""

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from poa_ds import train
from poa_ds.recipe import continuing, load
from poa_ds.recipe.tree import Mlflow, Recipe
from poa_ds.system.addresses import Address
from poa_ds.system.errors import UsageError
from poa_ds.track.destination import described, destination, warnings
from poa_ds.track.tracker import Tracker
from tests.track.test_tracker_faults import eventually

SERVER = "http://localhost:5000"
SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def recipe(uri: str = "", experiment: str = "", **top: object) -> Recipe:
    return replace(Recipe(), mlflow=Mlflow(Address(uri), experiment), **top)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ({}, {}, ("sqlite:////run/mlflow.db", "poa", "")),
        ({}, {"MLFLOW_TRACKING_URI": SERVER}, (SERVER, "poa", "")),
        (
            {"uri": "https://localhost:1"},
            {"MLFLOW_TRACKING_URI": SERVER},
            ("https://localhost:1", "poa", ""),
        ),
        ({}, {"MLFLOW_EXPERIMENT_NAME": "cats"}, ("sqlite:////run/mlflow.db", "cats", "")),
        ({"experiment": "dogs"}, {"MLFLOW_EXPERIMENT_NAME": "cats"}, (None, "dogs", "")),
        ({}, {"MLFLOW_EXPERIMENT_ID": "7"}, (None, "", "7")),
        ({}, {"MLFLOW_EXPERIMENT_ID": "7", "MLFLOW_EXPERIMENT_NAME": "cats"}, (None, "cats", "")),
        ({}, {"MLFLOW_TRACKING_URI": "", "MLFLOW_EXPERIMENT_NAME": ""}, (None, "poa", "")),
    ],
)
def test_the_recipe_comes_first_then_the_variables_then_the_folder(
    given: dict, environment: dict[str, str], expected: tuple
) -> None:
    found = destination(recipe(**given), Path("/run"), environment)
    uri, *experiment = expected
    assert [found.experiment, found.experiment_id] == experiment
    assert uri in (None, found.uri)


def test_the_start_says_where_metrics_go_and_why_there() -> None:
    here = replace(recipe(), output_dir="/run")
    assert described(here, {"MLFLOW_TRACKING_URI": SERVER}) == (
        f"/run/metrics.jsonl; MLflow at {SERVER} (MLFLOW_TRACKING_URI), experiment poa"
    )
    assert described(here, {"MLFLOW_EXPERIMENT_ID": "7"}).endswith("experiment with the id 7")
    assert (
        described(replace(here, tracking="none"), {}) == "/run/metrics.jsonl alone (tracking none)"
    )


def test_what_mlflow_could_not_write_to_is_refused_with_the_name_of_the_variable() -> None:
    with pytest.raises(UsageError, match=r"MLFLOW_TRACKING_URI is 'mlruns'.*sqlite:///"):
        destination(recipe(), Path("/run"), {"MLFLOW_TRACKING_URI": "mlruns"})


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////x/a?b.db", "would be called /x/a, without ?b.db"),
        ("sqlite:///$POA_NOT_SET/m.db", "POA_NOT_SET is not set"),
    ],
)
def test_a_file_that_would_not_be_there_afterwards_is_refused_whoever_names_it(
    uri: str, said: str
) -> None:
    for given, environment in ((recipe(uri), {}), (recipe(), {"MLFLOW_TRACKING_URI": uri})):
        with pytest.raises(UsageError) as error:
            destination(given, Path("/run"), environment)
        assert said in str(error.value)


def test_variables_have_their_paths_expanded_like_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    found = destination(recipe(), Path("/run"), {"MLFLOW_TRACKING_URI": "sqlite:///~/m.db"})
    assert found.file == Path("/h/m.db")


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", "50%"])
def test_a_folder_that_no_sqlite_uri_can_name_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    words = ["--config", "ds_configs/photos.yaml", f"output_dir={tmp_path / name}/run"]
    assert train.main(words) == 2
    said = capsys.readouterr().err
    assert f"output_dir {tmp_path / name}/run has {name.strip('ab205')} in its name" in said
    assert "mlflow.uri=sqlite:///FILE" in said and not list(tmp_path.iterdir())
    with_uri = destination(recipe(SERVER), tmp_path / name, {})
    assert with_uri.uri == SERVER  # nothing of MLflow's lies there


def test_files_beside_a_store_of_the_users_lie_where_it_does() -> None:
    found = destination(recipe("sqlite:////with%20space/m.db?timeout=9"), Path("/run"), {})
    assert found.file == Path("/with space/m.db")
    assert destination(recipe(SERVER), Path("/run"), {}).file is None


@contextlib.contextmanager
def hearing(heard: list[str]) -> Iterator[int]:
    """The port of a server that refuses everything and notes who asks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("Authorization", ""))
            self.send_response(500)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_a_password_of_the_recipe_reaches_the_server_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "")  # what the tracker sets is gone after the test
    heard: list[str] = []
    said = ""
    with hearing(heard) as port:
        uri = f"http://localhost:{port}".replace("//", "//me:hunter%402@")
        words = [f"mlflow.uri={uri}", f"output_dir={tmp_path}"]
        given = load.recipe(Path("ds_configs/photos.yaml"), words)
        (tmp_path / "config.yaml").write_text(load.to_yaml(given))
        tracker = Tracker.start(given, output_dir=tmp_path, is_main=True)
        tracker.log(0, {"loss": 1.0})
        assert eventually(lambda: bool(heard))
        tracker.close("FAILED", timeout_seconds=10)
        said += "".join(capfd.readouterr())
    assert set(heard) == {"Basic " + base64.b64encode(b"me:hunter@2").decode()}
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    doubts = "\n".join(warnings(given, {}))
    shown = described(given, {}) + "\n".join(map(str, continuing.changes("", given)))
    assert f"http://localhost:{port}" in kept and f"http://localhost:{port}" in shown
    assert "MLflow failed" in said
    assert not [text for text in (kept, said, doubts, shown, repr(given)) if "hunter" in text]
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in doubts


def test_a_database_gets_its_password_with_its_address() -> None:
    whole = "postgresql://me:hunter2@db/mlflow"
    found = destination(recipe(), Path("/run"), {"MLFLOW_TRACKING_URI": whole})
    assert found.connection() == (whole, {}) and "hunter2" not in f"{found}{found!r}"
    [doubt] = warnings(recipe(whole), {})
    assert "set MLFLOW_TRACKING_URI with the whole address" in doubt and "hunter2" not in doubt


def test_the_recipe_of_an_older_run_is_compared_without_its_password() -> None:
    old = load.to_yaml(recipe(SERVER)).replace("//localhost", "//me:hunter2@localhost")
    assert "hunter2" in old
    lines = continuing.lines(continuing.changes(old, Recipe()), Recipe(), step=1, images=1000)
    assert "hunter2" not in "\n".join(lines)


def test_variables_without_effect_are_named() -> None:
    [run] = warnings(recipe(), {"MLFLOW_RUN_ID": "abc"})
    assert "MLFLOW_RUN_ID is not used" in run
    [nothing] = warnings(recipe(tracking="none"), {"MLFLOW_TRACKING_URI": SERVER})
    assert "tracking none, although MLFLOW_TRACKING_URI" in nothing
    assert warnings(recipe(), {"MLFLOW_TRACKING_URI": SERVER}) == []
    there = {"MLFLOW_TRACKING_URI": SERVER, "MLFLOW_EXPERIMENT_NAME": "cats"}
    other = "sqlite:////m.db?key=hunter2"
    uri, experiment = warnings(recipe(other, "dogs"), there)[:2]
    assert "MLFLOW_TRACKING_URI is set and not used: the recipe has mlflow.uri sqlite:" in uri
    assert "hunter2" not in uri
    assert "MLFLOW_EXPERIMENT_NAME is set and not used" in experiment and "dogs" in experiment
    assert warnings(recipe(SERVER, "cats"), there) == []
