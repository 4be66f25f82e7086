"""poa-ds report: one page about runs, to choose a size by and to see how the training went."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from poa_ds.report import choosing, runs
from poa_ds.report.page import fitting
from poa_ds.system import arguments, paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UserError
from poa_ds.system.files import check_out, replace_text

MOST_MB = 8.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `poa-ds report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=paths.path,
        metavar="RUN",
        help="output directories",
    )
    parser.add_argument(
        "--out", type=paths.path, default=Path("report.html"), help="the page (report.html)"
    )
    parser.add_argument("--title", default="", help="of the page (the names of the runs)")
    parser.add_argument(
        "--max-mb",
        type=arguments.positive,
        default=MOST_MB,
        metavar="MB",
        help=f"of the page at most ({MOST_MB:g}): fewer k are shown where it would be larger",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page; the exit status."""
    check_out("--out", args.out)
    size = write(args.runs, args.out, title=args.title, most_mb=args.max_mb)
    count = len(args.runs)
    tell(f"{args.out}: {count} run{'s' * (count > 1)}, {size / 1e6:.2f} MB")
    return 0


def write(folders: Sequence[Path], out: Path, *, title: str = "", most_mb: float = MOST_MB) -> int:
    """Put the page about these runs in its place; its bytes."""
    found = [runs.read(folder) for folder in folders]
    for spare in ("folder", "path"):  # runs of one name are called by what tells them apart
        if len({run["name"] for run in found}) < len(found):
            found = [{**run, "name": run[spare]} for run in found]
    title = title or " · ".join(one["name"] for one in found)
    text = fitting(found, title, most_mb * 1e6, choosing.between_runs(folders))
    try:
        replace_text(out, text)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return len(text.encode())
