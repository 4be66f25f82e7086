"""Where the metrics of a run go: what the recipe says, else MLflow's own variables, else a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from poa_ds.recipe.checks import STORES
from poa_ds.recipe.tree import Recipe
from poa_ds.system.addresses import Address
from poa_ds.system.errors import UsageError
from poa_ds.system.paths import expanded
from poa_ds.system.run_folder import RunFolder

URI, EXPERIMENT, EXPERIMENT_ID = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_EXPERIMENT_ID",
)
DEFAULT_EXPERIMENT = "poa"
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Destination:
    """An MLflow store and the experiment in it; the id holds where there is no name."""

    uri: Address
    experiment: str
    experiment_id: str = ""
    said_by: str = ""

    def __str__(self) -> str:
        experiment = self.experiment or f"with the id {self.experiment_id}"
        return f"MLflow at {self.uri} ({self.said_by}), experiment {experiment}"

    @property
    def file(self) -> Path | None:
        """The file of a store that is one; None for a server."""
        if not self.uri.startswith(SQLITE):
            return None
        return Path(unquote(self.uri.removeprefix(SQLITE).partition("?")[0]))

    def connection(self) -> tuple[str, dict[str, str]]:
        """(the uri to connect to, the environment variables that MLflow wants with it).

        A server's password is a variable, so that no message of MLflow's holds it.
        """
        whole = self.uri.whole
        if not (self.uri.has_password and whole.startswith("http")):
            return whole, {}
        parts = urlsplit(whole)
        found = {"USERNAME": parts.username or "", "PASSWORD": parts.password or ""}
        return str(self.uri), {f"MLFLOW_TRACKING_{k}": unquote(v) for k, v in found.items()}


def check(recipe: Recipe, folder: Path, environment: Mapping[str, str]) -> None:
    """UsageError where a run that is to be tracked names a place that MLflow could not write to."""
    if "mlflow" in recipe.trackers:
        destination(recipe, folder, environment)


def destination(
    recipe: Recipe, folder: Path, environment: Mapping[str, str], *, elsewhere: str = ""
) -> Destination:
    """Where the run in `folder` is tracked, or in another store, given by its uri.

    UsageError: MLflow could not write there.
    """
    options = recipe.mlflow
    given = ((elsewhere, "--uri"), (options.uri, "mlflow.uri"), (environment.get(URI, ""), URI))
    place, said_by = next(((place, who) for place, who in given if place), ("", "in output_dir"))
    uri = _written_to(Address(place), said_by) if place else _in_folder(folder)
    name = options.experiment or environment.get(EXPERIMENT, "")
    number = "" if name else environment.get(EXPERIMENT_ID, "")
    return Destination(uri, name or ("" if number else DEFAULT_EXPERIMENT), number, said_by)


def described(recipe: Recipe, environment: Mapping[str, str]) -> str:
    """Where metrics go, for the start of a run."""
    folder = Path(recipe.output_dir)
    places = [str(RunFolder(folder).metrics)]
    if not recipe.trackers:
        return f"{places[0]} alone (tracking none)"
    if "mlflow" in recipe.trackers:
        places.append(str(destination(recipe, folder, environment)))
    if "tensorboard" in recipe.trackers:
        places.append(f"TensorBoard's files in {RunFolder(folder).tensorboard}")
    if "wandb" in recipe.trackers:
        places.append(f"Weights & Biases, project {wandb_project(environment)}")
    return "; ".join(places)


def wandb_project(environment: Mapping[str, str]) -> str:
    """The project of Weights & Biases that runs belong to."""
    return environment.get("WANDB_PROJECT") or DEFAULT_EXPERIMENT


def warnings(recipe: Recipe, environment: Mapping[str, str]) -> list[str]:
    """What is not done with a recipe's password, or with MLflow's variables."""
    found = []
    given = ((URI, "mlflow.uri", recipe.mlflow.uri.whole),)
    given += ((EXPERIMENT, "mlflow.experiment", recipe.mlflow.experiment),)
    for name, key, value in given if "mlflow" in recipe.trackers else ():
        if value and environment.get(name, value) != value:
            found.append(f"{name} is set and not used: the recipe has {key} {Address(value)}")
    if recipe.mlflow.uri.has_password:
        instead = f"{URI} with the whole address, and leave mlflow.uri empty"
        if recipe.mlflow.uri.startswith("http"):
            instead = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD beside it"
        found.append(
            "mlflow.uri holds a password: it is used, and left out of config.yaml, checkpoints and"
            f" messages; take it out, and set {instead}"
        )
    if environment.get("MLFLOW_RUN_ID"):
        found.append("MLFLOW_RUN_ID is not used: a run finds its own by what is in output_dir")
    if "mlflow" not in recipe.trackers and environment.get(URI):
        found.append(f"MLflow gets nothing: tracking {recipe.tracking}, although {URI} is set")
    return found


def _written_to(uri: Address, said_by: str) -> Address:
    """The store, a file's path expanded. UsageError: it is none that is there afterwards."""
    if not uri.startswith(STORES):
        raise UsageError(
            f"{said_by} is {uri!r}, not a store that MLflow writes to: it begins with one of"
            f" {', '.join(STORES)} (unset: a sqlite file in the output directory)"
        )
    if not uri.startswith(SQLITE):
        return uri
    uri = Address(expanded(uri.whole))
    path, mark, options = uri.removeprefix(SQLITE).partition("?")
    if path in ("", ":memory:"):
        raise UsageError(f"{said_by} is {uri}: it names no file, and all would be lost at the end")
    if mark and "=" not in options:
        raise UsageError(f"{said_by} is {uri}: its file would be called {path}, without ?{options}")
    return uri


def _in_folder(folder: Path) -> Address:
    path = folder.resolve()
    odd = sorted(set("?#%") & set(str(path)))
    if odd:
        raise UsageError(
            f"output_dir {path} has {' and '.join(odd)} in its name, which MLflow's file cannot"
            f" have: give it another name, or mlflow.uri={SQLITE}FILE, or tracking=none"
        )
    return Address(f"{SQLITE}{RunFolder(path).mlflow_store}")
