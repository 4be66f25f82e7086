"""poa-ds bench methods: variants of a recipe trained on several seeds, and one table of them.

Every run is an ordinary training in a folder of its own. What is done stays done: the same command
continues after a kill, and tries again what failed.
"""

import argparse
import json
import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from poa_ds.bench.methods import report, results, runner
from poa_ds.bench.methods import runs as planned
from poa_ds.bench.methods.runs import Run, Settings
from poa_ds.bench.methods.table import Equal, Table, names, read
from poa_ds.system import files, lock, paths
from poa_ds.system.arguments import count, whole
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError

LOCK = "bench.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds bench methods`."""
    parser.add_argument(
        "--table",
        default="methods",
        metavar="TABLE",
        help=f"a YAML file, or {', '.join(names())} (%(default)s)",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=whole, default=[0, 1, 2], metavar="N", help="(0 1 2)"
    )
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="some of the table's variants")
    parser.add_argument("--steps", type=count, metavar="N", help="of every run (the recipes')")
    parser.add_argument(
        "--equal",
        choices=get_args(Equal),
        help="what all variants get alike: images seen by each run; or counted operations of all"
        " runs of a variant together; or nothing (own), each has its own steps (the table's,"
        " images where it says nothing)",
    )
    parser.add_argument(
        "--data", type=paths.place, metavar="DIR", help="holds train and val (the table's)"
    )
    parser.add_argument(
        "--out",
        type=paths.path,
        default=Path("runs/methods"),
        metavar="DIR",
        help="runs, the table in Markdown and JSON; continued if it is there (%(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only list the runs and their cost")
    parser.add_argument(
        "--report", action="store_true", help="only write the table of what is there"
    )


def run(args: argparse.Namespace) -> int:
    """Train what is missing, write the table; 1 where something is missing at the end."""
    table = read(args.table)
    settings = _settings(table, args)

    def plan() -> list[Run]:
        return planned.plan(table, settings)

    if args.dry_run:
        tell(_listed(plan()))
        return 0
    runner.check(plan(), args.out)
    if args.report:
        return _write(table, plan(), args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no training outlives the command
    with lock.held(args.out, "a bench", lost=_taken_over, name=LOCK):
        try:
            runner.run(plan, args.out)
        finally:
            status = _write(table, plan(), args)
    return status


def _taken_over(message: str) -> None:
    say(f"poa-ds bench methods: error: {message}")
    os.kill(os.getpid(), signal.SIGTERM)


def _settings(table: Table, args: argparse.Namespace) -> Settings:
    unknown = sorted(set(args.only or ()) - set(table.variants))
    if unknown:
        raise UsageError(f"--only {', '.join(unknown)}: variants are {', '.join(table.variants)}")
    equal = args.equal or table.head.equal
    if equal == "own" and args.steps:
        raise UsageError("--steps: each variant has steps of its own here (--equal own)")
    chosen = tuple(name for name in table.variants if not args.only or name in args.only)
    data = args.data or table.head.data
    return Settings(
        args.out,
        data,
        _images(data),
        tuple(dict.fromkeys(args.seeds)),
        chosen,
        args.steps,
        equal,
    )


def _images(data: str) -> int:
    """Of the training set; UserError with the remedy where there is none."""
    from poa_ds.data.store.index import ShardFolder

    try:
        return len(ShardFolder.load(Path(data) / "train"))
    except UserError as error:
        raise UserError(
            f"{error}; --data DIR names the folder of train and val (photographs: poa-ds shard"
            f" photos --out {data} --val 200; CIFAR-10: poa-ds shard cifar10 --source DIR --out"
            f" {data})"
        ) from error


def _listed(runs: Sequence[Run]) -> str:
    """The runs in their order, a line each."""
    wide = max(len(run.name) for run in runs) + 2
    lines, total = [f"{'run':<{wide}}{'steps':>8}{'images':>12}{'TFLOP':>10}"], 0.0
    for one in runs:
        flops = one.flops()
        counted = "-" if flops is None else f"{flops / 1e12:,.1f}"
        total += flops or 0.0
        state = "  done" if one.done else ""
        lines.append(f"{one.name:<{wide}}{one.steps:>8,}{one.images:>12,}{counted:>10}{state}")
    lines.append(f"{len(runs)} runs, {total / 1e12:,.1f} TFLOP counted")
    if any(one.flops() is None for one in runs):
        lines.append("-: counted when its teacher is there")
    return "\n".join(lines)


def _write(table: Table, runs: Sequence[Run], args: argparse.Namespace) -> int:
    found, outcomes = results.read(runs), runner.outcomes(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    markdown, as_json = (args.out / "table").with_suffix(".md"), args.out / "table.json"
    text = report.text(table, runs, found, outcomes, _command(args))
    record = report.record(table, runs, found)
    files.replace_text(markdown, text)
    files.replace_text(as_json, json.dumps(record, indent=1) + "\n")
    tell(f"{text}\nwritten: {markdown}, {as_json}")
    return 1 if any(not one.done for one in runs) else 0


def _command(args: argparse.Namespace) -> str:
    """The command that made the runs, whichever made the table."""
    words = ["poa-ds", "bench", "methods", "--table", args.table, "--seeds", *map(str, args.seeds)]
    words += ["--only", *args.only] if args.only else []
    words += ["--steps", str(args.steps)] if args.steps else []
    words += ["--equal", args.equal] if args.equal else []
    words += ["--data", args.data] if args.data else []
    return shlex.join([*words, "--out", str(args.out)])
