"""mlflow.json: by which ids a run and the runs of its sizes go on in MLflow.

{"key": "...", "run": "...", "children": {"w0384_d12": "...", ...}}: `key` is the run's own and made
at its start, so that a run is found in any store, even where nobody heard its id.
"""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IDS = "mlflow.json"  # in the output directory: the runs' ids, before any checkpoint has them


def keep(folder: Path, ids: Mapping[str, Any]) -> None:
    """Write the ids into the run's folder."""
    beside = folder / f"{IDS}.partial"
    beside.write_text(json.dumps(ids))
    beside.replace(folder / IDS)


def known(folder: Path, resumed: Mapping[str, Any] | None) -> dict[str, Any]:
    """The ids to go on with, at least a key. resumed: those of the checkpoint; None: a new run.

    Those in the folder are newer than the checkpoint's, unless they are another run's.
    """
    path = folder / IDS
    found = json.loads(path.read_text()) if resumed is not None and path.exists() else {}
    ids = dict(resumed or {})
    if not ids or ids.get("key") == found.get("key", ""):
        ids = found
    return {"key": uuid.uuid4().hex} | ids
