"""What a size is chosen by besides its accuracy: its time, and how sure differences are.

The page chooses as `poa-ds sizes` does, and names who is ahead as `poa-ds compare` does.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from poa_ds.evaluate import results, right
from poa_ds.evaluate.latency import rows as latency_rows
from poa_ds.evaluate.results import KnnRow
from poa_ds.evaluate.right import Right
from poa_ds.recipe import load
from poa_ds.report.series import rounded
from poa_ds.system.run_folder import RunFolder

Shown = dict[str, Any]  # goes into the page as JSON
COSTS = ("parameters", "gflops", "latency")


def latencies(path: Path) -> Shown:
    """{"place": where times were measured last, "ms": by size, "unsteady": sizes}; {}: nowhere."""
    rows = latency_rows.read(path)
    if not rows:
        return {}
    newest = {row.size: row for row in rows if row.place == rows[-1].place}
    return {
        "place": str(rows[-1].place),
        "ms": {size: rounded(row.median) for size, row in newest.items()},
        "unsteady": [size for size, row in newest.items() if row.unsteady],
    }


def answers(files: RunFolder, rows: Sequence[KnnRow], k: int) -> Right:
    """Which queries each size got right at the last evaluation; {} where that was not kept."""
    step = max((row.step for row in rows), default=0)
    return right.of_measured(files.right, step, k, results.newest(rows, step))


def sure(
    known: Right, sizes: Sequence[Shown], accuracies: Mapping[str, float]
) -> dict[str, list[float | None]]:
    """Of each size that is the highest within some budget: the errors of its differences.

    One for each of `sizes`, in points, 95 %; None: not known. A page may hold these, and not
    those of all pairs.
    """
    names, found = [size["size"] for size in sizes], {}
    between = right.between(known, names)
    highest = set().union(*(_highest(sizes, accuracies, cost) for cost in COSTS))
    for number in sorted(highest):
        errors = [rounded(between(other, number)) for other in range(len(names))]
        if any(error is not None for error in errors):
            found[names[number]] = errors
    return found


def _highest(sizes: Sequence[Shown], accuracies: Mapping[str, float], cost: str) -> set[int]:
    """Numbers of the sizes that have the highest accuracy of all that cost no more."""
    known = [
        (size[cost], -accuracies[size["size"]], number)
        for number, size in enumerate(sizes)
        if size.get(cost) is not None and size["size"] in accuracies
    ]
    found, least = set(), float("inf")
    for _, negative, number in sorted(known):
        if negative < least:
            least = negative
            found.add(number)
    return found


def between_runs(folders: Sequence[Path]) -> list[Shown]:
    """[{"runs": [i, j], "k", "errors": by size}]: of the difference of two runs in a size, 95 %.

    Where both answered the same queries at their last evaluation, and the answers were kept.
    """
    read = []
    for folder in folders if len(folders) > 1 else ():
        files = RunFolder(folder)
        k = load.kept_recipe(files.recipe).evaluation.report_k
        rows = results.read(files.knn)
        newest = results.newest(rows, max((row.step for row in rows), default=0))
        protocol = next((used for _, used in newest.values()), None)
        read.append((k, protocol, answers(files, rows, k)))
    found = []
    for (i, (k, protocol, known)), (j, (other_k, other, others)) in combinations(
        enumerate(read), 2
    ):
        both = sorted(known.keys() & others.keys())
        if both and k == other_k and protocol == other:
            errors = {size: rounded(right.paired(known[size], others[size])[1]) for size in both}
            found.append({"runs": [i, j], "k": k, "errors": errors})
    return found
