"""What a demo came to: two pictures and a few sentences."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from poa_ds.evaluate import results, right
from poa_ds.evaluate.results import KnnRow
from poa_ds.model.space import Subnet
from poa_ds.system.processes import beside_python
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import metrics_file, plots
from poa_ds.track.plots import Alone

K = 20  # of the k-NN that is told: the recipe's report_k
# Runs of one size, seeds 0 to 2, by as many queries: command and machine are in
# docs/science.md, "Against the same size trained alone".
QUERIES = 3800
ALONE = {
    Subnet(32, 2): (73.6, 73.1, 78.2),
    Subnet(64, 3): (75.9, 79.7, 79.0),
    Subnet(96, 4): (75.6, 77.4, 77.3),
}


def drawn(out: Path, model: Path) -> str:
    """Draw the pictures of the run `out`; what came out, and where it and `model` are."""
    folder = RunFolder(out)
    [*_, row] = results.read(folder.knn)
    rows = metrics_file.read_rows(folder.metrics)
    found, floors = metrics_file.knn_curves(rows)
    last = {size: points[-1][1] for size, points in found.items()}
    alone = ALONE if row.protocol["queries"]["images"] == QUERIES else {}
    bank = f"bank of {row.protocol['bank']['images']:,} images"
    title = f"k-NN top-1 of every size, {bank}"
    plots.save(plots.curves(rows, alone=alone, title=title), out / "curves.png")
    title = f"k-NN top-1, step {row.step:,}, {bank}"
    plots.save(plots.heat_map(last, title=title), out / "heat_map.png")
    gains = {size: value - floors.random[size] for size, value in last.items()}
    least, most = (pick(gains, key=gains.__getitem__) for pick in (min, max))
    mlflow = shlex.join([str(beside_python("poa-ds")), "mlflow", str(out)])
    return f"""
{len(last)} sizes from one run. Their k-NN top-1: {min(last.values()):.1f} to \
{max(last.values()):.1f} %; raw pixels alone: {floors.pixels:.1f} %.
Gained over their own random weights: {gains[least]:+.1f} ({least}) to {gains[most]:+.1f} ({most}).
{_largest(folder, row)}{_beside(alone, last)}
one page for the browser, with all of it     {folder.report}
the curves of every size, with both floors   {out / "curves.png"}
the last accuracies over width and depth     {out / "heat_map.png"}
one size as a timm model                     {model}
the run: recipe, metrics, checkpoints, ...   {out}
the curves of every size in MLflow           {mlflow}"""


def _largest(folder: RunFolder, row: KnnRow) -> str:
    """Whether the largest size is better than the smallest, by the queries that both answered."""
    sizes = sorted(map(Subnet.read, row.knn), key=lambda size: (size.width, size.stages))
    small, large = str(sizes[0]), str(sizes[-1])
    answers = right.at(folder.right, row.step, K, row.protocol)
    if not {small, large} <= answers.keys():  # of a revision that kept none
        return ""
    gain, error = right.paired(answers[large], answers[small])
    verdict = "larger is better" if gain > error else "larger is not shown to be better"
    return f"The largest, {large}, minus {small}: {gain:+.1f} +- {error:.1f} points: {verdict}.\n"


def _beside(alone: Alone, last: Mapping[Subnet, float]) -> str:
    """What runs of one size alone came to, and what that size has here."""
    found = [
        f"  {size}   {', '.join(f'{value:.1f}' for value in runs)}; here {last[size]:.1f}"
        for size, runs in alone.items()
    ]
    head = "The same size trained alone, three seeds (docs/science.md):"
    return "\n".join([head, *found, ""]) if found else ""
