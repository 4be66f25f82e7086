"""poa-ds sizes: what each size costs and reaches, and the one to take within a budget."""

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.evaluate import results, score_rows, worth
from poa_ds.evaluate import right as of_right
from poa_ds.evaluate.latency import rows as latency_rows
from poa_ds.evaluate.latency.rows import LatencyRow
from poa_ds.evaluate.pareto import cheapest_not_worse, front
from poa_ds.evaluate.right import Right
from poa_ds.evaluate.worth import KNN, Worth
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.recipe.tree import Recipe
from poa_ds.system import arguments, paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.printable import short
from poa_ds.system.run_folder import RunFolder

COSTS = ("parameters", "gflops", "latency")


@dataclass(frozen=True)
class Row:
    """One size. gflops: of a forward pass of one image, two per multiply-add.

    error: of knn, 95 %, in points. worth: of the measure that sizes are judged by, k-NN unless
    another is asked for; other: by another protocol than the newest, not judged. best: the cheapest
    whose worth is not shown to be worse than the highest: it lies within the error of their
    difference, or within that one's own where it is not known which queries were right. latency:
    median milliseconds on this machine. front: no size is better in cost or worth and as good in
    the other.
    """

    size: str
    name: str
    parameters: int
    gflops: float
    knn: float | None  # percent top-1 at the recipe's report_k
    error: float | None = None
    worth: float | None = None
    worth_error: float | None = None
    other: bool = False
    best: bool = False
    latency: float | None = None
    unsteady: bool = False  # the latency
    front: bool = False

    def cost(self, kind: str) -> float | None:
        """One of COSTS; None: not measured."""
        return getattr(self, kind)

    @property
    def judged(self) -> float | None:
        """Its worth, where that may be compared with the others'."""
        return None if self.other else self.worth


def rows(
    model: ElasticBackbone,
    recipe: Recipe,
    knn: Mapping[str, Worth],
    *,
    judge: Mapping[str, Worth] | None = None,
    most_parameters: float = float("inf"),
    most_gflops: float = float("inf"),
    latencies: Mapping[str, LatencyRow] | None = None,
    most_milliseconds: float = float("inf"),
    cost: str = "parameters",
    right: Right | None = None,
) -> list[Row]:
    """Every size within the budget, cheapest first, judged by k-NN or another measure.

    right: answers of the same evaluation, of sizes that have one protocol.

    latencies: latency_rows.newest. A size without one is not within a budget of milliseconds.
    """
    names: dict[str, list[str]] = {}
    for name, subnet in model.space.names.items():
        names.setdefault(str(subnet), []).append(name)
    crop, judge = recipe.evaluation.crop, knn if judge is None else judge
    every = [
        Row(
            str(subnet),
            ", ".join(names.get(str(subnet), [])),
            model.parameter_count(subnet),
            model.flops(subnet, crop) / 1e9,
            *_percent(knn.get(str(subnet))),
            *_percent(judged := judge.get(str(subnet))),
            other=judged is not None and judged.other,
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
    best = cheapest_not_worse([(row.judged, row.worth_error) for row in fitting], between)
    kept = front([(row.cost(cost), row.judged) for row in fitting])
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


def _percent(found: Worth | None) -> tuple[float | None, float | None]:
    return (found.percent, found.error) if found else (None, None)


def table(
    found: Sequence[Row],
    recipe: Recipe,
    title: str,
    *,
    cost: str = "",
    by: str = KNN,
    by_query: bool = False,
) -> str:
    """The rows as aligned text; a star for the best, or for the front of this cost.

    Latencies are a column where any is known, and so is what sizes are judged `by` beside k-NN.
    by_query: it is known which queries were right.
    """
    timed = any(row.latency is not None for row in found)
    name_width = max([len(row.name) for row in found] + [4])
    evaluation = recipe.evaluation
    size_width = max([len(row.size) for row in found] + [8]) + 2
    own = max(18, len(by) + 3) * (by != KNN)
    head = (
        f"  {'size':<{size_width}}{'name':<{name_width}}{'parameters':>12}"
        f"{f'GFLOPs at {evaluation.crop}':>16}{'latency ms' if timed else '':>{12 * timed}}"
        f"{f'k-NN (k={evaluation.report_k})':>18}{by if own else '':>{own}}"
    )
    lines = [title, head]
    for row in found:
        mark = row.front if cost else row.best
        latency = "-" if row.latency is None else f"{row.latency:.2f}{'?' * row.unsteady}"
        judged = _accuracy(row.worth, row.worth_error, other=row.other)
        lines.append(
            f"{'*' if mark else ' '} {row.size:<{size_width}}{row.name:<{name_width}}"
            f"{short(row.parameters):>12}{row.gflops:>16.3g}"
            f"{latency if timed else '':>{12 * timed}}"
            f"{_accuracy(row.knn, row.error) if own else judged:>18}{judged if own else '':>{own}}"
        )
    name = "k-NN" if by == KNN else by
    if cost:
        lines.append(
            f"* the front of {cost} and {name}: no other is as good in both and better in one"
        )
    elif any(row.best and row.worth_error is None for row in found):
        lines.append("* the highest, the cheapest of equal ones: its error is not known")
    elif any(row.best for row in found):
        of_what = "their difference, query by query" if by_query else "the highest"
        lines.append(f"* the cheapest within the 95 % error of {of_what}: not shown to be worse")
    return "\n".join(lines)


def _accuracy(percent: float | None, error: float | None, *, other: bool = False) -> str:
    if percent is None:
        return "-"
    known = "" if error is None else f" ± {error:.1f}"
    return f"{'~' * other}{percent:.2f}{known} %"


def as_csv(found: Sequence[Row]) -> str:
    """The rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in found)
    return text.getvalue().rstrip("\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds sizes`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--max-params", type=arguments.quantity, default=float("inf"), metavar="N", help="e.g. 25M"
    )
    parser.add_argument(
        "--max-gflops",
        type=arguments.quantity,
        default=float("inf"),
        metavar="N",
        help="e.g. 5; two per multiply-add",
    )
    parser.add_argument(
        "--max-latency",
        type=arguments.milliseconds,
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
        "--worth",
        default=KNN,
        metavar="NAME",
        help="by which sizes are judged: knn, or what another evaluation has measured, such as "
        "logistic_top1 (%(default)s)",
    )
    parser.add_argument(
        "--pareto", action="store_true", help="only sizes that none beats in --cost and --worth"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", action="store_true", help="print CSV")
    output.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the sizes of a run."""
    if args.accept_unsteady and not _asks_for_latency(args):
        raise UsageError("--accept-unsteady is for --max-latency TIME or --cost latency")
    model, recipe, step = load_teacher(args.run, args.step)
    folder, k = RunFolder.around(find_teacher(args.run, args.step)), recipe.evaluation.report_k
    evaluations = results.read(folder.knn)
    knn, judge, right = worth.of_knn(evaluations, step, k), None, {}
    if args.worth == KNN:
        newest = results.newest(evaluations, step)
        right = of_right.of_measured(folder.right, step, k, newest)
    else:
        judge = worth.of_scores(score_rows.read(folder.evaluations), step, args.worth)
    latencies = _latencies(folder.latency, args)
    found = rows(
        model,
        recipe,
        knn,
        judge=judge,
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
            raise UserError(f"no size has {_missing(args.worth, args.run)}")
    if args.csv:
        tell(as_csv(found))
    elif args.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
    else:
        title = f"{args.run}, step {step}: {len(found)} sizes"
        cost = args.cost if args.pareto else ""
        tell(table(found, recipe, title, cost=cost, by=args.worth, by_query=bool(right)))
        tell("\n".join(_remarks(found, args, latencies, knn=knn, judge=judge)))
    return 0


def _asks_for_latency(args: argparse.Namespace) -> bool:
    return args.max_latency < float("inf") or args.cost == "latency"


def _latencies(path: Path, args: argparse.Namespace) -> Mapping[str, LatencyRow]:
    """Those of this machine; {} where none are there or asked for."""
    asked = _asks_for_latency(args)
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
    found: Sequence[Row],
    args: argparse.Namespace,
    latencies: Mapping[str, LatencyRow],
    *,
    knn: Mapping[str, Worth],
    judge: Mapping[str, Worth] | None,
) -> list[str]:
    """By which protocols sizes were measured, and what is missing."""
    lines = ["GFLOPs: of one image, two per multiply-add"]
    if latencies:
        place = next(iter(latencies.values())).place
        lines.append(f"latency: {len(latencies)} sizes measured on {place}; ? unsteady")
    for name, measured in (("k-NN", knn), *([(args.worth, judge)] if judge else [])):
        shown = [measured[row.size] for row in found if row.size in measured]
        protocols = sorted({f"{'~ ' * of.other}{of.protocol}" for of in shown})
        lines += [f"{name}: {protocol}" for protocol in protocols]
        if len(protocols) > 1:
            lines.append("These protocols differ: the accuracies cannot be compared.")
    missing = sum(row.worth is None for row in found)
    if missing:
        lines.append(f"{missing} sizes without {_missing(args.worth, args.run)}")
    return lines


def _missing(name: str, run: Path) -> str:
    """The measure and the command that measures it."""
    if name == KNN:
        return f"k-NN: poa-ds eval knn {run} --sizes all"
    kind = name.partition("_")[0]
    return f"{name}: poa-ds eval {kind} {run} --sizes all, with the options of the other sizes"
