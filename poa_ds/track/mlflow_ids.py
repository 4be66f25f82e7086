"""mlflow.json: by which ids a run and the runs of its sizes go on in MLflow.

{"key": "...", "run": "...", "children": {"w0384_d12": "...", ...}}: `key` is the run's own and made
at its start, so that a run is found in any store, even where nobody heard its id.
"""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poa_ds.system.errors import UserError
from poa_ds.system.files import replace_text
from poa_ds.system.json_text import parse_object
from poa_ds.system.regular import check_regular
from poa_ds.system.run_folder import RunFolder


def keep(folder: Path, ids: Mapping[str, Any]) -> None:
    """Write the ids into the run's folder."""
    replace_text(RunFolder(folder).mlflow_ids, json.dumps(ids))


def known(folder: Path, resumed: Mapping[str, Any] | None) -> dict[str, Any]:
    """The ids to go on with, at least a key. resumed: those of the checkpoint; None: a new run.

    Those in the folder are newer than the checkpoint's, unless they are another run's.
    """
    found = _read(RunFolder(folder).mlflow_ids) if resumed is not None else {}
    ids = dict(resumed or {})
    if not ids or ids.get("key") == found.get("key", ""):
        ids = found
    return {"key": uuid.uuid4().hex} | ids


def _read(path: Path) -> dict[str, Any]:
    check_regular(path)
    try:
        found = parse_object(path.read_bytes()) if path.exists() else {}
        children = found.get("children", {})
        texts = [found.get("key", ""), found.get("run", "")]
        texts += children.values() if isinstance(children, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("an id is no text")
        return found
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it, a run that continues then takes the ids of "
            "its checkpoint"
        ) from error
