"""poa-ds demo: the whole job on photographs that are in the box, by the commands a user would type.

Every command is printed. Each of them takes up what an earlier demo left.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from poa_ds.system import lock, paths, terminal
from poa_ds.system.arguments import whole
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UserError
from poa_ds.system.processes import LOOK_SECONDS, Group, beside_python, free_port

RECIPE = Path("photos")  # shipped
EXTRACTED = "base"  # a name of that recipe
LOCK = "demo.json"  # lock.json is the training's
PATCHES = 200  # of each photograph to measure by: an accuracy's error is 1.4 points
GRACE_SECONDS = 40.0  # the launcher ends its ranks one after the other


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds demo`."""
    parser.add_argument(
        "--out", type=paths.path, default=Path("runs/demo"), help="folder of the run (%(default)s)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the training (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Shards, a trained run, its table and pictures, one extracted model: all below args.out."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no process outlives the demo
    out: Path = args.out
    with lock.held(out, "a demo", lost=_taken_over, name=LOCK):
        return _run(out, args.seed)


def _taken_over(message: str) -> None:
    say(f"poa-ds demo: error: {message}")
    os.kill(os.getpid(), signal.SIGTERM)


def _run(out: Path, seed: int) -> int:
    shards, model = out / "shards", out / EXTRACTED
    if not all((shards / split / "dataset.json").is_file() for split in ("train", "val")):
        _call("poa-ds", "shard", "photos", "--out", shards, "--val", PATCHES)
    _call("poa-ds", "check", shards)
    _train(out, shards, seed)
    _call("poa-ds", "sizes", out)
    as_timm = ("--size", EXTRACTED, "--out", model, "--format", "timm", "--check")
    _call("poa-ds", "extract", out, *as_timm)
    from poa_ds.report import demo_result  # matplotlib: `poa-ds demo --help` does without

    tell(demo_result.drawn(out, model))
    return 0


def _train(out: Path, shards: Path, seed: int) -> None:
    import torch  # seconds; `poa-ds demo --help` does without

    from poa_ds.recipe import load

    slots = load.recipe(RECIPE).batch.slots
    gpus = torch.cuda.device_count()
    environment = {"OMP_NUM_THREADS": "1"} | ({} if gpus else {"DS_ACCELERATOR": "cpu"})
    ranks = max(n for n in range(1, slots + 1) if slots % n == 0 and n <= (gpus or 2))
    _call(
        *("deepspeed", "-q", "--num_gpus", ranks, "--master_port", free_port()),
        *("--module", "poa_ds.train", "--config", RECIPE),
        *("--deepspeed_config", "zero2", f"output_dir={out}", f"seed={seed}"),
        *(f"data.train={shards / 'train'}", f"evaluation.queries={shards / 'val'}"),
        environment=environment,
    )


def _call(program: str, *words: object, environment: Mapping[str, str] | None = None) -> None:
    """Run one command to its end, with its output; UserError unless it succeeds.

    It gets a process group of its own, so that an interrupt reaches every rank exactly once.
    """
    command = [str(beside_python(program)), *map(str, words)]
    settings = [f"{name}={value}" for name, value in (environment or {}).items()]
    tell(f"\n$ {' '.join([*settings, shlex.join(command)])}")
    group = Group(command, os.environ | (environment or {}))
    try:
        while (status := group.status()) is None:
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        group.signal(signal.SIGTERM)  # at SIGINT the launcher would print a traceback
        group.wait(GRACE_SECONDS)
        raise
    finally:
        group.signal(signal.SIGKILL)
        terminal.restore(sys.stderr, os.environ)
    if status:
        raise UserError(f"the demo stops: {program} ended with status {status}, see above")
