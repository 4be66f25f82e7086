"""What sizes are worth by one measure, k-NN or another: values that may be compared, and others."""

from collections.abc import Sequence
from dataclasses import dataclass

from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.results import KnnRow
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.system.errors import UsageError

KNN = "knn"


@dataclass(frozen=True)
class Worth:
    """percent and its 95 % error in points, None where it is not known.

    other: measured by another protocol than the newest: the two cannot be compared.
    """

    percent: float
    error: float | None
    protocol: str
    other: bool = False


def of_knn(rows: Sequence[KnnRow], step: int, k: int) -> dict[str, Worth]:
    """Size -> its worth at that k, by the rows of knn.jsonl of that step."""
    found = {
        size: (by_k[k], row.protocol)
        for row in rows
        if row.step == step
        for size, by_k in row.knn.items()
        if k in by_k
    }
    last = next((row.protocol for row in reversed(rows) if row.step == step), None)
    return {
        size: Worth(
            value,
            results.error(value, protocol["queries"]["images"]),
            results.describe(protocol),
            other=protocol != last,
        )
        for size, (value, protocol) in found.items()
    }


def of_scores(rows: Sequence[ScoreRow], step: int, name: str) -> dict[str, Worth]:
    """Size -> its worth by the rows of that name. UsageError: there is none."""
    found = score_rows.newest(rows, step, name)
    if floors := [row.floor_of for row in found.values() if row.floor]:
        raise UsageError(
            f"--worth {name}: that is a floor, of what was not trained; sizes are worth {floors[0]}"
        )
    if any(row.is_error for row in found.values()):
        raise UsageError(f"--worth {name}: that is an error, of which less is better; take top1")
    if not found:
        there = sorted({row.name for row in rows if row.step == step and _judges(row)})
        known = f"there are {', '.join([KNN, *there])}" if there else "there is k-NN alone"
        raise UsageError(
            f"--worth {name}: nothing of that name was measured at step {step}; {known}"
        )
    last = next(r for r in reversed(rows) if (r.step, r.name) == (step, name)).protocol_id
    return {
        size: Worth(
            row.value, row.error, score_rows.describe(row.protocol), other=row.protocol_id != last
        )
        for size, row in found.items()
    }


def _judges(row: ScoreRow) -> bool:
    return not (row.floor or row.is_error)
