"""poa-ds sizes: what each size costs and reaches, and the one to take within a budget."""

import argparse
import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.evaluate import latency_rows, results
from poa_ds.evaluate import right as of_right
from poa_ds.evaluate.latency_rows import LatencyRow
from poa_ds.evaluate.pareto import cheapest_not_worse, front
from poa_ds.evaluate.right import Right
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.recipe.tree import Recipe
from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UserError
from poa_ds.system.printable import short
from poa_ds.system.run_folder import RunFolder

COSTS = ("parameters", "gflops", "latency")
UNITS = {"ms": 1.0, "s": 1e3}
SUFFIXES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


@dataclass(frozen=True)
class Row:
    """One size. gflops: of a forward pass of one image, two per multiply-add.

    error: of knn, 95 %, in points. best: the cheapest whose k-NN is not shown to be worse than the
    highest: it lies within the error of their difference, or within that one's own where it is not
    known which queries were right. latency: median milliseconds on this machine. front:
    no size is better in cost or k-NN and as good in the other.
    """

    size: str
    name: str
    parameters: int
    gflops: float
    knn: float | None  # percent top-1 at the recipe's report_k
    error: float | None = None
    best: bool = False
    latency: float | None = None
    unsteady: bool = False  # the latency
    front: bool = False

    def cost(self, kind: str) -> float | None:
        """One of COSTS; None: not measured."""
        return getattr(self, kind)


def rows(
    model: ElasticBackbone,
    recipe: Recipe,
    measured: Mapping[str, tuple[results.Accuracies, Mapping]],
    *,
    most_parameters: float = float("inf"),
    most_gflops: float = float("inf"),
    latencies: Mapping[str, LatencyRow] | None = None,
    most_milliseconds: float = float("inf"),
    cost: str = "parameters",
    right: Right | None = None,
) -> list[Row]:
    """Every size within the budget, cheapest first; measured: results.newest of the run.

    right: answers of the same evaluation, of sizes that have one protocol.

    latencies: latency_rows.newest. A size without one is not within a budget of milliseconds.
    """
    names: dict[str, list[str]] = {}
    for name, subnet in model.space.names.items():
        names.setdefault(str(subnet), []).append(name)
    report_k, crop = recipe.evaluation.report_k, recipe.evaluation.crop
    every = [
        Row(
            str(subnet),
            ", ".join(names.get(str(subnet), [])),
            model.parameter_count(subnet),
            model.flops(subnet, crop) / 1e9,
            *_knn(measured.get(str(subnet)), report_k),
        )
        for subnet in model.space.subnets()
    ]
    every = [_timed(row, (latencies or {}).get(row.size)) for row in every]
    every.sort(key=lambda row: (row.parameters, row.gflops))
    fitting = [r for r in every if r.parameters <= most_parameters and r.gflops <= most_gflops]
    if most_milliseconds < float("inf"):
        fitting = [r for r in fitting if r.latency is not None and r.latency <= most_milliseconds]
    if not fitting:
        least = min(every, key=lambda row: row.gflops)
        raise UserError(
            f"no size is within the budget: {every[0].size} has {short(every[0].parameters)} "
            f"parameters, {least.size} needs {least.gflops:.3g} GFLOPs{_quickest(every)}"
        )
    # those whose cost was not measured come last
    fitting.sort(key=lambda row: (row.cost(cost) is None, row.cost(cost) or 0.0))
    between = of_right.between(right or {}, [row.size for row in fitting])
    best = cheapest_not_worse([(row.knn, row.error) for row in fitting], between)
    kept = front([(row.cost(cost), row.knn) for row in fitting])
    return [
        replace(row, best=number == best, front=number in kept)
        for number, row in enumerate(fitting)
    ]


def _timed(row: Row, latency: LatencyRow | None) -> Row:
    if latency is None:
        return row
    return replace(row, latency=latency.median, unsteady=latency.unsteady)


def _quickest(every: Sequence[Row]) -> str:
    measured = [row for row in every if row.latency is not None]
    if not measured:
        return ""
    least = min(measured, key=lambda row: row.latency)
    return f", {least.size} takes {least.latency:.3g} ms"


def _knn(
    measured: tuple[results.Accuracies, Mapping] | None, k: int
) -> tuple[float | None, float | None]:
    """(percent, its error), of a size that was measured at that k."""
    accuracies, protocol = measured or ({}, {})
    if k not in accuracies:
        return None, None
    return accuracies[k], results.error(accuracies[k], protocol["queries"]["images"])


def table(
    found: Sequence[Row], recipe: Recipe, title: str, *, cost: str = "", by_query: bool = False
) -> str:
    """The rows as aligned text; a star for the best, or for the front of this cost.

    Latencies are a column where any is known. by_query: it is known which queries were right.
    """
    timed = any(row.latency is not None for row in found)
    name_width = max([len(row.name) for row in found] + [4])
    evaluation = recipe.evaluation
    size_width = max([len(row.size) for row in found] + [8]) + 2
    head = (
        f"  {'size':<{size_width}}{'name':<{name_width}}{'parameters':>12}"
        f"{f'GFLOPs at {evaluation.crop}':>16}{'latency ms' if timed else '':>{12 * timed}}"
        f"{f'k-NN (k={evaluation.report_k})':>18}"
    )
    lines = [title, head]
    for row in found:
        accuracy = "-" if row.knn is None else f"{row.knn:.2f} ± {row.error:.1f} %"
        mark = row.front if cost else row.best
        latency = "-" if row.latency is None else f"{row.latency:.2f}{'?' * row.unsteady}"
        lines.append(
            f"{'*' if mark else ' '} {row.size:<{size_width}}{row.name:<{name_width}}"
            f"{short(row.parameters):>12}{row.gflops:>16.3g}"
            f"{latency if timed else '':>{12 * timed}}{accuracy:>18}"
        )
    if cost:
        lines.append(
            f"* the front of {cost} and k-NN: no other is as good in both and better in one"
        )
    elif any(row.best for row in found):
        of_what = "their difference, query by query" if by_query else "the highest"
        lines.append(f"* the cheapest within the 95 % error of {of_what}: not shown to be worse")
    return "\n".join(lines)


def as_csv(found: Sequence[Row]) -> str:
    """The rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in found)
    return text.getvalue().rstrip("\n")


def quantity(text: str) -> float:
    """A number with an optional K, M or G (or B) behind it: 25M is 25 million."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGB]?)", text.strip().upper())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 such as 25M or 800K")
    return float(match[1]) * SUFFIXES[match[2]]


def milliseconds(text: str) -> float:
    """A time with its unit: 20ms, 0.02s."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text.strip().lower())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 such as 20ms or 0.02s")
    return float(match[1]) * UNITS[match[2]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds sizes`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--max-params", type=quantity, default=float("inf"), metavar="N", help="e.g. 25M"
    )
    parser.add_argument(
        "--max-gflops",
        type=quantity,
        default=float("inf"),
        metavar="N",
        help="e.g. 5; two per multiply-add",
    )
    parser.add_argument(
        "--max-latency",
        type=milliseconds,
        default=float("inf"),
        metavar="TIME",
        help="e.g. 20ms, by the newest times of `poa-ds latency` on this machine",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="of the times (the newest)")
    parser.add_argument(
        "--accept-unsteady", action="store_true", help="--max-latency by unsteady times too"
    )
    parser.add_argument(
        "--cost", choices=COSTS, default="parameters", help="by which sizes are ordered"
    )
    parser.add_argument(
        "--pareto", action="store_true", help="only sizes that none beats in --cost and k-NN"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", action="store_true", help="print CSV")
    output.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the sizes of a run."""
    model, recipe, step = load_teacher(args.run, args.step)
    folder = RunFolder.around(find_teacher(args.run, args.step))
    measured = results.newest(results.read(folder.knn), step)
    latencies = _latencies(folder.latency, args)
    right = of_right.of_measured(folder.right, step, recipe.evaluation.report_k, measured)
    found = rows(
        model,
        recipe,
        measured,
        most_parameters=args.max_params,
        most_gflops=args.max_gflops,
        latencies=latencies,
        most_milliseconds=args.max_latency,
        cost=args.cost,
        right=right,
    )
    if args.pareto:
        found = [row for row in found if row.front]
        if not found:
            raise UserError(f"no size has k-NN: poa-ds eval knn {args.run} --sizes all")
    if args.csv:
        tell(as_csv(found))
    elif args.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
    else:
        title = f"{args.run}, step {step}: {len(found)} sizes"
        cost = args.cost if args.pareto else ""
        tell(table(found, recipe, title, cost=cost, by_query=bool(right)))
        tell("\n".join(_remarks(measured, found, args.run, latencies)))
    return 0


def _latencies(path: Path, args: argparse.Namespace) -> Mapping[str, LatencyRow]:
    """Those of this machine; {} where none are there or asked for."""
    asked = args.max_latency < float("inf") or args.cost == "latency"
    found = latency_rows.read(path)
    if not asked and not latency_rows.here(found, args.device):
        return {}
    newest = latency_rows.newest(found, args.device)
    unsteady = [size for size, row in newest.items() if row.unsteady]
    if asked and unsteady and not args.accept_unsteady:
        load = max(newest[size].load for size in unsteady)
        raise UserError(
            f"the latency of {', '.join(unsteady[:3])}{' and others' * (len(unsteady) > 3)} is "
            f"unsteady (load {load:.1f} then): measure again on a quiet machine, or "
            "--accept-unsteady takes the medians"
        )
    return newest


def _remarks(
    measured: dict, found: Sequence[Row], run: Path, latencies: Mapping[str, LatencyRow]
) -> list[str]:
    """By which protocol the k-NN was measured, and what is missing."""
    shown = {row.size for row in found if row.knn is not None}
    protocols = sorted({results.describe(p) for size, (_, p) in measured.items() if size in shown})
    lines = ["GFLOPs: of one image, two per multiply-add"]
    if latencies:
        place = next(iter(latencies.values())).place
        lines.append(f"latency: {len(latencies)} sizes measured on {place}; ? unsteady")
    lines += [f"k-NN: {protocol}" for protocol in protocols]
    if len(protocols) > 1:
        lines.append("These protocols differ: the accuracies cannot be compared.")
    if len(shown) < len(found):
        lines.append(
            f"{len(found) - len(shown)} sizes without k-NN: poa-ds eval knn {run} --sizes all"
        )
    return lines
