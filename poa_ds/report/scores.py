"""Accuracies of evaluations.jsonl as a page shows them: what sizes are chosen by besides k-NN."""

from collections.abc import Sequence
from typing import Any

from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.score_rows import OF_PIXELS, OF_RANDOM, ScoreRow
from poa_ds.report.series import rounded


def readouts(rows: Sequence[ScoreRow], names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each measure that is an accuracy the same as runs.readouts gives of each k.

    k is its name, such as linear_top1. The page takes errors from the number of images: measures
    whose error is another, or not known, are not there.
    """
    every = {row.name: row for row in rows if _is_accuracy(row)}
    found = []
    for name in sorted(name for name, row in every.items() if not row.floor):
        of_name = [row for row in rows if row.name == name]
        steps = sorted({row.step for row in of_name})
        values = []
        for step in steps:
            newest = score_rows.newest(of_name, step, name)
            values.append([rounded(_value(newest.get(size))) for size in names])
        floors = [row for row in rows if row.floor and row.floor_of == name]
        random = {row.size: row for row in floors if row.floor == OF_RANDOM}
        pixels = [row for row in floors if row.floor == OF_PIXELS]
        found.append(
            {
                "k": name,
                "steps": steps,
                "values": values,
                "random": [rounded(_value(random.get(size))) for size in names],
                "pixels": rounded(_value(pixels[-1] if pixels else None)),
                "queries": of_name[-1].protocol["val"]["images"],
                "protocols": sorted({score_rows.describe(row.protocol) for row in of_name}),
                "protocol": dict(of_name[-1].protocol),
            }
        )
    return found


def _is_accuracy(row: ScoreRow) -> bool:
    images = row.protocol.get("val", {}).get("images", 0)
    if row.error is None or not images or row.is_error:
        return False
    return abs(row.error - results.error(row.value, images)) < 1e-6


def _value(row: ScoreRow | None) -> float | None:
    return None if row is None else row.value
