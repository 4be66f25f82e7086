"""poa-ds mlflow: MLflow's pages of a run, by a link that lands on the curves of all its sizes.

MLflow itself opens on another page, and shows ten runs of them all. Its page of one metric shows
every run that the address names, in the order of the names.
"""

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from poa_ds.recipe.tree import Recipe
from poa_ds.system import arguments, paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UserError
from poa_ds.system.processes import LOOK_SECONDS, Group, answers, free_port
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import mlflow_ids
from poa_ds.track.destination import Destination, destination
from poa_ds.track.mlflow_client import connect, failure, set_environment
from poa_ds.track.mlflow_store import RUN_TAG
from poa_ds.track.mlflow_sync import recipe_of

USUAL_PORT = 5000
HOST = "127.0.0.1"
START_SECONDS = 300.0  # of a server, on a busy machine
GRACE_SECONDS = 10.0
AT_A_TIME = 1000  # runs of one answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `poa-ds mlflow`."""
    parser.add_argument("folder", type=paths.path, metavar="RUN", help="output directory of a run")
    parser.add_argument(
        "--port",
        type=arguments.port,
        help=f"of this machine ({USUAL_PORT}; where that is in use, a free one)",
    )
    parser.add_argument("--no-open", action="store_true", help="print the links, open no browser")


@dataclass(frozen=True)
class Place:
    """A run in a store. sizes: the ids of the sizes' runs, narrow ones first."""

    experiment: str
    run: str
    sizes: tuple[str, ...]

    def curves(self, server: str) -> str:
        """The link to one chart with the k-NN accuracies of all sizes."""
        metric = "knn_top1"
        given = {
            "runs": list(self.sizes),
            "metric": metric,
            "experiments": [self.experiment],
            "plot_metric%5Fkeys": [metric],  # its _ so: a *_key of an address is taken for a secret
            "plot_layout": {"autosize": True},
            "deselected_curves": [],
            "last_linear_y_axis_range": [],
        }
        asked = [f"{key}={_quoted(value)}" for key, value in given.items()]
        asked += ["x_axis=step", "y_axis_scale=linear", "line_smoothness=1", "show_point=true"]
        return f"{server}/#/metric?{'&'.join(asked)}&workflowType=machine_learning"

    def charts(self, server: str) -> str:
        """The link to the charts of the experiment's runs."""
        mode = "workflowType=machine_learning&compareRunsMode=CHART"
        return f"{server}/#/experiments/{self.experiment}/runs?{mode}"


def run(args: argparse.Namespace) -> int:
    """Serve the run's store until Ctrl-C, or print the links of its server; the exit status."""
    folder = args.folder.resolve()
    recipe = recipe_of(args.folder)
    set_environment()
    place = destination(recipe, folder, os.environ)
    _check(args, place)
    if place.uri.startswith("http"):
        tell_links(args, find(recipe, folder, place), str(place.uri).rstrip("/"))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no process outlives this one
    with tempfile.TemporaryFile() as log:
        port = chosen_port(args.port)
        server = Group(_command(port), os.environ | _environment(place), output=log)
        try:
            found = find(recipe, folder, place)  # meanwhile
            _await(server, port, log)
            tell_links(args, found, f"http://{HOST}:{port}")
            say("Ctrl-C ends the server")
            while server.status() is None:
                time.sleep(LOOK_SECONDS)
            raise UserError(f"MLflow has ended: {_last_words(log)}")
        except KeyboardInterrupt:
            return 0
        finally:
            server.signal(signal.SIGTERM)
            server.wait(GRACE_SECONDS)
            server.signal(signal.SIGKILL)


def tell_links(args: argparse.Namespace, found: Place, server: str) -> None:
    """Print where to look, and open a browser there where one can be opened."""
    tell(f"all runs of the experiment:\n  {found.charts(server)}")
    if found.sizes:
        tell(f"the curves of {len(found.sizes)} sizes:\n  {found.curves(server)}")
    report = RunFolder(args.folder).report
    if report.is_file():
        tell(f"the same and more, without MLflow:\n  {report}")
    # without a desktop a browser of the terminal would be started
    desktop = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if desktop and not args.no_open:
        webbrowser.open(found.curves(server) if found.sizes else found.charts(server))


def find(recipe: Recipe, folder: Path, place: Destination) -> Place:
    """Where the run is in its store. UserError: it is not, or the store does not answer."""
    key = mlflow_ids.known(folder, {})["key"]
    try:
        client, _ = connect(place)
        experiment = place.experiment_id
        if place.experiment:
            named = client.get_experiment_by_name(place.experiment)
            experiment = named.experiment_id if named else ""
        runs = [*_search(client, experiment, f"tags.{RUN_TAG} = '{key}'")] if experiment else []
        if not runs:
            raise UserError(
                f"{place} has no run of {folder}: poa-ds mlflow-sync {folder} brings it there"
            )
        run = runs[0].info
        below = f"tags.`mlflow.parentRunId` = '{run.run_id}'"
        sizes = sorted(_search(client, run.experiment_id, below), key=_size)
    except Exception as error:  # MLflow's and its libraries' own, of many kinds
        raise failure(error, place, "is its server there?") from error
    return Place(run.experiment_id, run.run_id, tuple(size.info.run_id for size in sizes))


def _search(client: Any, experiment: str, condition: str) -> Iterator[Any]:
    page = None
    while page is None or page.token:
        token = page.token if page else None
        page = client.search_runs([experiment], condition, max_results=AT_A_TIME, page_token=token)
        yield from page


def _size(run: Any) -> tuple[int, list[int]]:
    """Width and depth; 0 and none of a run whose making was interrupted."""
    width, depth = (run.data.params.get(name, "") for name in ("width", "depth"))
    blocks = [int(word) for word in depth.strip("()").replace(",", " ").split() if word.isdigit()]
    return int(width or 0), blocks


def chosen_port(asked: int | None) -> int:
    """The port to serve at. UserError: the one that was asked for is in use."""
    port = USUAL_PORT if asked is None else asked
    if not 0 < port < 1 << 16:
        raise UserError(f"--port {port}: a port is a number from 1 to 65535")
    if not answers(port):
        return port
    free = free_port()
    if asked is not None:
        raise UserError(f"port {port} is in use on this machine; free is --port {free}")
    return free


def _check(args: argparse.Namespace, place: Destination) -> None:
    if importlib.util.find_spec("mlflow") is None:
        raise UserError("mlflow is not installed here: make setup installs it")
    if place.file and not place.file.is_file():
        raise UserError(
            f"{args.folder} has no MLflow store, {place.file} is absent: with tracking=none none is"
            f" made; poa-ds mlflow-sync {args.folder} makes one of what was logged"
        )


def _command(port: int) -> Sequence[str]:
    own = ("--host", HOST, "--port", str(port), "--workers", "1")
    return [sys.executable, "-m", "mlflow", "ui", *own]


def _environment(place: Destination) -> dict[str, str]:
    """The store stands here: a password in it is not for the list of processes."""
    uri, credentials = place.connection()
    return credentials | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # no processes besides
    }


def _await(server: Group, port: int, log: IO[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while not answers(port):
        if server.status() is not None:
            raise UserError(f"MLflow does not start: {_last_words(log)}")
        if time.monotonic() > end:
            raise UserError(f"MLflow does not answer within {START_SECONDS:g} s at port {port}")
        time.sleep(LOOK_SECONDS)


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it says nothing")


def _quoted(value: object) -> str:
    return quote(json.dumps(value, separators=(",", ":")), safe="")
