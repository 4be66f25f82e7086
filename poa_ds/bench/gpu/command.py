"""poa-ds bench gpu: everything that is to be measured on a GPU, with one command that continues.

What a person with a new GPU runs first. Parts that are done stay done; those that failed or ran
out of time are said in the report, and the same command tries them again.
"""

import argparse
import json
import multiprocessing
import os
import re
import shlex
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from poa_ds.bench.gpu import constants, report, runner
from poa_ds.bench.gpu.calls import Scene
from poa_ds.bench.gpu.figures import read
from poa_ds.bench.gpu.parts import NAMES, parts
from poa_ds.plan import measured
from poa_ds.system import files, lock, paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError

UNITS = {"s": 1, "m": 60, "h": 3600}
LOCK = "bench.json"


def duration(text: str) -> float:
    """Seconds of 90s, 30m or 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text, re.ASCII)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time as 90s, 30m or 2h")
    return float(found[1]) * UNITS[found[2]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds bench gpu`."""
    parser.add_argument(
        "--budget",
        type=duration,
        default="30m",
        metavar="TIME",
        help="how long this command may take: 90s, 30m, 2h (%(default)s)",
    )
    parser.add_argument(
        "--out",
        type=paths.path,
        default=Path("runs/bench_gpu"),
        metavar="DIR",
        help="the report, table.json and every figure; continued if it is there (%(default)s)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="PART", help=f"some of: {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--cifar",
        type=paths.path,
        metavar="DIR",
        help="where CIFAR-10 is, as for `poa-ds shard cifar10 --source`: a run for the time left",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="every part tiny, on a CPU too: checks the code"
    )


def run(args: argparse.Namespace) -> int:
    """Measure what is not measured yet; 1 where something is missing at the end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no process outlives the command
    found = _identity()
    if found["device"] == "cpu" and not args.smoke:
        raise UsageError("bench gpu: torch sees no GPU here; --smoke runs all parts small on a CPU")
    with lock.held(args.out, "a bench", lost=_taken_over, name=LOCK):
        return _run(args, found)


def _taken_over(message: str) -> None:
    say(f"poa-ds bench gpu: error: {message}")
    os.kill(os.getpid(), signal.SIGTERM)


def _run(args: argparse.Namespace, identity: dict[str, str]) -> int:
    out = args.out.resolve()
    _check_same(out, identity | {"smoke": str(args.smoke)})
    for name in ("parts", "records", "records/kernels"):
        (out / name).mkdir(exist_ok=True)
    cifar = args.cifar and args.cifar.resolve()
    scene = Scene(out, "cuda" if identity["device"] == "cuda" else "cpu", args.smoke, cifar)
    every, command = parts(scene), _command(args)
    chosen = [part for part in every if not args.only or part.name in args.only]
    try:
        runner.run(scene, chosen, args.budget)
    finally:
        kind, of_kind = found = constants.of_scene(scene)
        if kind is not None:
            files.replace_text(scene.constants, measured.text(kind, of_kind))
        files.replace_text(scene.report, report.text(scene, every, command, identity, found))
    left: dict[str, list[str]] = {"unfinished": [], "missing": []}
    for part in chosen:
        outcomes = scene.outcomes(part.name)
        for call in part.calls:
            if runner.again(outcome := outcomes[call.name]):
                kind = "unfinished" if outcome.status == "unfinished" else "missing"
                left[kind].append(f"{part.name}: {call.name}")
    tell(f"report: {scene.report}")
    for kind, names in left.items():
        if names:
            say(f"{kind}: {'; '.join(names)}")
    if any(left.values()):
        say(f"the same command goes on: {command}")
    return 1 if left["missing"] else 0


def _command(args: argparse.Namespace) -> str:
    """What goes on, whatever part of it was asked for."""
    words = ["poa-ds", "bench", "gpu", "--out", str(args.out)]
    words += ["--cifar", str(args.cifar)] if args.cifar else []
    return shlex.join([*words, *(["--smoke"] if args.smoke else [])])


def _identity() -> dict[str, str]:
    """By a process that ends: it would hold a part of the GPU's memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_ask).result()


def _ask() -> dict[str, str]:
    from poa_ds.bench.gpu import machine

    return machine.identity()


def _check_same(out: Path, settings: dict[str, str]) -> None:
    """Figures of two machines, or of a smoke run, do not stand in one report."""
    path = out / "settings.json"
    if not path.exists():
        files.replace_text(path, json.dumps(settings, indent=1) + "\n")
        return
    before = read(path)
    for name, value in settings.items():
        if before.get(name) != value:
            raise UsageError(
                f"--out {out} has figures of {name} {before.get(name)}, here it is {value}: "
                "name another folder"
            )
