"""MLflow's own client of a store: the only importer of mlflow, and only when a store is opened."""

import logging
import os
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from poa_ds.system.addresses import without_passwords
from poa_ds.system.errors import UserError
from poa_ds.system.files import publish
from poa_ds.system.lock import alone
from poa_ds.track.destination import SQLITE, Destination

# few retries, short time-outs: MLflow's own would hold on to a dead server for minutes per call
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}

# A fork (data loader workers) in the middle of an import leaves that module's lock taken for ever
# in the child, so forks wait for the import of mlflow.
IMPORTING = threading.RLock()
os.register_at_fork(
    before=IMPORTING.acquire,
    after_in_parent=IMPORTING.release,
    after_in_child=IMPORTING.release,
)


def connect(place: Destination, *, makes: bool = False) -> tuple[Any, Any]:
    """(an mlflow.MlflowClient of the store, mlflow.entities), mlflow being imported on the way.

    makes: a file that is not there yet.
    """
    uri, credentials = place.connection()
    os.environ.update(credentials)
    with IMPORTING:
        import PIL.Image  # noqa: F401 - mlflow would import it later
        from mlflow import MlflowClient, entities

    # what goes wrong is raised, and said in one line; they would print tracebacks and retries
    for name in ("mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    file = place.file
    # of two that make a database at once one fails, and may leave it half made for good
    with alone(file.with_name(f".{file.name}.lock")) if file and makes else nullcontext():
        if file and makes and not file.exists():
            _make(file)
        return MlflowClient(uri), entities


def set_environment() -> None:
    """Keep MLflow quiet and quick to give up, where the user has not said otherwise."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def failure(error: Exception, place: Destination, advice: str) -> UserError:
    """What an error of MLflow's, or of its libraries, is to a command that needs it."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ImportError):
        return UserError(f"mlflow is not installed here: {error}")
    cause = without_passwords(" ".join(f"{type(error).__name__}: {error}".split()))[:400]
    return UserError(f"MLflow at {place.uri} failed ({advice}): {cause}")


def _make(file: Path) -> None:
    """A new database: one that a kill left half made would never become whole."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    making = file.with_name(f".{file.name}.making")
    for leftover in (making, making.with_name(f"{making.name}-journal")):
        leftover.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"{SQLITE}{making}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()
    with open(making, "rb") as whole:
        publish(whole, file)
