"""The sizes of a run as records, for Python and for tables of other libraries."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.evaluate import results, worth
from poa_ds.evaluate import right as of_right
from poa_ds.evaluate.latency import rows as latency_rows
from poa_ds.evaluate.sizes import rows
from poa_ds.system.run_folder import RunFolder


def sizes(run: str | os.PathLike, step: int | None = None) -> list[dict[str, Any]]:
    """Every size, cheapest first: what it costs, and what was measured of it (None: nothing).

    size, name, parameters, gflops of an image, knn in % with its 95 % error, latency in ms on this
    machine, best (the cheapest that is not shown to be worse), front; `pandas.DataFrame` takes the
    list. step: of the evaluation (the newest). UserError: there is no such run.
    """
    model, recipe, at = load_teacher(Path(run), step)
    folder = RunFolder.around(find_teacher(Path(run), step))
    k, evaluations = recipe.evaluation.report_k, results.read(folder.knn)
    timed = latency_rows.read(folder.latency)
    found = rows(
        model,
        recipe,
        worth.of_knn(evaluations, at, k),
        latencies=latency_rows.newest(timed, None) if latency_rows.here(timed, None) else {},
        right=of_right.of_measured(folder.right, at, k, results.newest(evaluations, at)),
    )
    return [asdict(row) for row in found]
