"""poa-ds compare: several runs side by side, size by size, with what each had cost by then."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from poa_ds.bench.compare import runs, table
from poa_ds.bench.compare.runs import BY, By, Compared, Point
from poa_ds.bench.compare.table import Row
from poa_ds.evaluate import results
from poa_ds.system import paths
from poa_ds.system.arguments import count
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.files import check_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds compare`."""
    parser.add_argument("runs", nargs="+", type=paths.path, metavar="RUN", help="two or more")
    parser.add_argument(
        "--by",
        choices=BY,
        help="compare at the same images, steps, seconds or counted operations: what the cheapest"
        " of the runs has had in all (without: the last evaluation of each)",
    )
    parser.add_argument("--k", type=count, help="of the accuracies (the first run's report_k)")
    parser.add_argument(
        "--mixed", action="store_true", help="mark runs of another protocol, do not refuse them"
    )
    parser.add_argument("--out", type=paths.path, metavar="FILE.png", help="draw the curves")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", action="store_true", help="print CSV")
    output.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the comparison, and draw it where that is asked for."""
    if len(args.runs) < 2:
        raise UsageError("compare: give two runs or more")
    if args.out and args.out.suffix != ".png":
        raise UsageError(f"--out {args.out}: a picture is written as .png")
    if args.out:
        check_out("--out", args.out)
    found, k = runs.read(args.runs, args.k)
    points = runs.chosen(found, args.by)
    if all(point is None for point in points):
        raise UserError(f"no run was evaluated within the --by {args.by} that all of them had")
    other = runs.other_protocol(found, points)
    if other and not args.mixed:
        raise UserError(_differing(found, points, other))
    rows = table.rows(found, points)
    if args.csv:
        tell(table.as_csv(found, points, rows))
    elif args.json:
        print(json.dumps(table.record(found, points, rows, other), indent=1))
    else:
        at = f"at the same {args.by}" if args.by else "the last evaluation of each"
        title = f"k-NN top-1 in percent (k = {k}), {at}"
        tell(table.text(found, points, rows, title=title, marked=other))
        tell("\n".join([*_remarks(points, rows, other), *_teachers(found)]))
    if args.out:
        _draw(args.out, found, args.by or "images", k)
    return 0


def _differing(
    found: Sequence[Compared], points: Sequence[Point | None], other: Sequence[str]
) -> str:
    lines = [
        f"  {run.name}: {results.describe(point.protocol)}"
        for run, point in zip(found, points, strict=True)
        if point is not None
    ]
    return "\n".join(
        [
            f"{', '.join(other)} was measured in another way than {found[0].name}: the k-NN cannot"
            " be compared (poa-ds eval knn measures anew; --mixed shows them, marked)",
            *lines,
        ]
    )


def _remarks(
    points: Sequence[Point | None], rows: Sequence[Row], other: Sequence[str]
) -> list[str]:
    known = [point for point in points if point is not None]
    lines = [
        f"k-NN: {results.describe(known[0].protocol)}",
        "±: 95 %, of these queries. Another seed moves a run too: poa-ds bench methods takes"
        " several.",
    ]
    if not other and any(row.lead and not row.lead.by_query for row in rows):
        lines.append(
            "~ not paired: which queries were right was not kept (poa-ds eval knn keeps it); the"
            " error is too large then"
        )
    if len(known) < len(points):
        lines.append(
            "-: not evaluated within what all of them had; evaluation.every_epochs says how often"
        )
    if other:
        lines.append(f"≠ measured in another way: nothing follows from {', '.join(other)}")
    return lines


def _teachers(found: Sequence[Compared]) -> list[str]:
    """Whose costs are in no run's."""
    return [
        f"{run.name} learned from {run.teacher}: what that had cost before is not counted"
        for run in found
        if run.teacher
    ]


def _draw(path: Path, found: Sequence[Compared], by: By, k: int) -> None:
    from poa_ds.bench.compare import picture  # matplotlib: seconds
    from poa_ds.track import plots

    sizes = [row.size for row in table.rows(found, [run.points[-1] for run in found])]
    figure = picture.curves(found, sizes, by=by, title=f"k-NN top-1 (k = {k})")
    try:
        plots.save(figure, path)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}") from error
    say(f"drawn: {path}")
