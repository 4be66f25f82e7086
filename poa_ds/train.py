"""Pre-train one elastic network: build, then the loop.

    deepspeed --module poa_ds.train --config ds_configs/photos.yaml output_dir=runs/photos
    python -m poa_ds.train ...      torchrun ... -m poa_ds.train ...      srun python -m ...

The same program and the same result under any of them; the same command continues a run.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType

from poa_ds import front
from poa_ds.recipe import checks, ds_json, load
from poa_ds.recipe.tree import Recipe
from poa_ds.run import exit_status, faults, remote
from poa_ds.run.watchdog import Watchdog
from poa_ds.system import limits, lock, paths, rendezvous
from poa_ds.system.allocator import prepare_allocator
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.run_folder import RunFolder
from poa_ds.system.stopping import Requests
from poa_ds.track import destination

EXAMPLE = f"""{exit_status.TABLE}

example (one process; on a CPU put DS_ACCELERATOR=cpu before it):
  python -m poa_ds.train --config ds_configs/photos.yaml output_dir=runs/photos
  deepspeed --num_gpus 8 --module poa_ds.train --config ds_configs/vit_s16_in1k.yaml \\
      --deepspeed_config ds_configs/zero2.json output_dir=runs/s16 data.train=shards/train"""


def parser() -> argparse.ArgumentParser:
    """The command line: a recipe, a DeepSpeed file, and dotted overrides."""
    p = argparse.ArgumentParser(
        prog="python -m poa_ds.train",
        description="Pre-train one elastic network; the same command continues a stopped run.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "--config",
        type=paths.path,
        required=True,
        metavar="RECIPE.yaml",
        help="a file, or the name of a shipped recipe (poa-ds recipes lists them)",
    )
    p.add_argument(
        "--deepspeed_config",
        type=paths.path,
        metavar="FILE.json",
        help="what DeepSpeed alone owns: a file, or a shipped name as zero2 (default: stage 0)",
    )
    p.add_argument("--dry-run", action="store_true", help="two steps; print time and memory")
    p.add_argument("--print-config", action="store_true", help="print the whole recipe and stop")
    p.add_argument("--deepspeed", action="store_true", help="changes nothing: it always is used")
    # appended by launchers
    p.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    p.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. schedule.epochs=100")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        parser().print_help()
        return 2
    args = parser().parse_intermixed_args(words)
    try:
        return _run(args)
    except (UserError, faults.Fault, KeyboardInterrupt) as error:
        return faults.report(error)


def _run(args: argparse.Namespace) -> int:
    recipe = load.recipe(args.config, args.overrides)
    ds_file = ds_json.read(args.deepspeed_config)
    if args.print_config:
        print(load.to_yaml(recipe), end="")
        return 0
    source = str(args.deepspeed_config or "without --deepspeed_config")
    return trained(recipe, ds_file, source=source, dry=args.dry_run)


def trained(recipe: Recipe, ds_file: dict, *, source: str, dry: bool = False) -> int:
    """The exit status of this rank's part of a training, or of two steps of it.

    source: the DeepSpeed file's name, for messages. The main thread's signals are the training's
    from here on. UserError, Fault or KeyboardInterrupt: it did not begin.
    """
    _check_surroundings(recipe)
    watchdog = _begin(recipe)
    writes = os.environ["RANK"] == "0" and not dry
    own = lock.held(Path(recipe.output_dir), "a training", lost=faults.taken_over)
    with faults.explained(watchdog.where, recipe.output_dir), own if writes else nullcontext():
        # torch and DeepSpeed: seconds to import
        from poa_ds.run.dry_run import dry_run
        from poa_ds.run.setup import Setup
        from poa_ds.run.training import Training

        indexes = None if dry else RunFolder(Path(recipe.output_dir)).images
        setup = Setup(recipe, ds_file, source=source, watchdog=watchdog, indexes=indexes)
        return dry_run(setup) if dry else _told(Training(setup).run, recipe, watchdog)


def _told(run: Callable[[], int], recipe: Recipe, watchdog: Watchdog) -> int:
    """The run's exit status; behind an error also what is saved, and how to go on."""
    from poa_ds.run import closing

    folder = Path(recipe.output_dir)
    told = partial(closing.show, closing.after_an_error, folder, to=say)
    if os.environ["RANK"] == "0":
        watchdog.last_words = told
    try:
        with faults.explained(watchdog.where, recipe.output_dir):
            return run()
    except (UserError, faults.Fault, KeyboardInterrupt) as error:
        status = faults.report(error)
        if os.environ["RANK"] == "0":
            told()
        return status


def _check_surroundings(recipe: Recipe) -> None:
    """Find what is wrong outside of the recipe while it costs no time."""
    checks.check_places(recipe)
    for secret in remote.check_arrival(os.environ):
        say(f"warning: {secret}")
    destination.check(recipe, Path(recipe.output_dir), os.environ)
    rendezvous.prepare_environment()
    rendezvous.check_port(os.environ)


def _begin(recipe: Recipe) -> Watchdog:
    """Hear signals and be watched from now on; settings that must precede the imports."""
    requests = Requests()
    requests.install()
    watchdog = Watchdog(requests, recipe.step_timeout_seconds)
    prepare_allocator(os.environ)
    limits.raise_open_files()
    return watchdog


class _Program(ModuleType):
    """This module can be called: `poa_ds.train(images, recipe=..., out=...)` is front.train."""

    __call__ = staticmethod(front.train)


sys.modules[__name__].__class__ = _Program

if __name__ == "__main__":
    status = main()
    if status:
        faults.leave(status)
    sys.exit(status)
