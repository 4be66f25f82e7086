"""poa-ds bench step: a training step of ours beside a plain three-pass one, on this machine.

A step is everything between the finished crops and the moved teacher. The plain one computes the
same loss from the same weights; where it does not, no figure is printed.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from poa_ds import bench_report, dist, engine
from poa_ds import config as recipes
from poa_ds.bench_report import Report, Result
from poa_ds.contenders import Contender, Job, Sample
from poa_ds.errors import UsageError, UserError

# of the losses and gradient norms: fp32 differs by the order of sums; bf16 has 8 bits, and
# autocast rounds in other places than bf16 weights do
TOLERANCE = {"fp32": 1e-4, "bf16": 2**-7}
Take = Callable[[Contender, Iterable[int]], list[Sample]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds bench step`."""
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("ds_configs/photos.yaml"),
        metavar="RECIPE.yaml",
        help="shapes, sizes and precision; on a GPU bf16 unless precision=... (%(default)s)",
    )
    parser.add_argument(
        "--deepspeed_config",
        type=Path,
        metavar="FILE.json",
        help="the stage of ours (without: stage 0 in fp32, stage 2 in bf16)",
    )
    parser.add_argument(
        "--steps", type=_count, default=20, help="measured steps of each (%(default)s)"
    )
    parser.add_argument(
        "--warmup", type=_count, default=3, help="steps before; the first compares (%(default)s)"
    )
    parser.add_argument(
        "--size", default="draw", help="elastic size: WIDTHxDEPTH, a name, or draw (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers, step by step")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. batch.slots=1")


def run(args: argparse.Namespace) -> int:
    """Measure, compare, print; UserError when the two do not compute the same."""
    if args.json and not args.json.parent.is_dir():
        raise UsageError(f"--json {args.json}: there is no folder {args.json.parent}")
    job = prepare(args)
    ours, plain, in_turns = _measure(job, args.warmup, args.steps)
    command = " ".join([f"--config {args.config}", *args.overrides])
    report = Report(command, job, bench_report.machine(job.device), ours, plain, in_turns)
    print(report.table(), flush=True)
    if args.json:
        try:
            args.json.write_text(json.dumps(report.record(), indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--json {args.json}: {error.strerror}") from error
    return 0


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def prepare(args: argparse.Namespace) -> Job:
    """The checked job; all that a user may have got wrong is found here."""
    world = dist.complete_environment(os.environ)["WORLD_SIZE"]
    if world != "1":
        raise UsageError(f"bench step is one process: start it without a launcher (of {world})")
    device = engine.pick_device()
    overrides = (["precision=bf16"] if device == "cuda" else []) + args.overrides
    config = recipes.load(args.config, overrides)
    if config.precision not in TOLERANCE:
        raise UsageError(f"precision {config.precision}: bench step measures fp32 and bf16")
    if config.objective.centering != "sinkhorn":
        raise UsageError(
            f"objective.centering {config.objective.centering}: the step that ours is measured "
            "against has sinkhorn only"
        )
    size = None if args.size == "draw" else recipes.space(config).parse(args.size)
    ds_file = recipes.read_json(args.deepspeed_config)
    if args.deepspeed_config is None and config.precision == "bf16":
        ds_file = {"zero_optimization": {"stage": 2}}  # stage 0 is for fp32
    source = str(args.deepspeed_config or "without --deepspeed_config")
    return Job(config, recipes.deepspeed_json(config, ds_file, 1, source=source), size, device)


def compare(ours: Sample, plain: Sample, precision: str) -> None:
    """UserError unless loss and gradient norms of the first step agree."""
    found = {"loss": (ours.loss, plain.loss)}
    for name, norm in ours.norms.items():
        found[f"gradient norm of the {name}"] = (norm, plain.norms[name])
    for what, (a, b) in found.items():
        apart = abs(a - b) / max(abs(b), 1e-30)
        if not apart <= TOLERANCE[precision]:  # NaN is no agreement
            raise UserError(
                f"the two steps differ: {what} {a:.8g} (ours) and {b:.8g} (three passes), "
                f"relative {apart:.2g}, allowed {TOLERANCE[precision]:.2g} in {precision}: "
                "no figures"
            )


def _measure(job: Job, warmup: int, steps: int) -> tuple[Result, Result, bool]:
    """(ours, plain, whether in turns): one after the other where memory is short for both."""
    silent = not sys.stderr.isatty()
    if silent:
        print(f"measuring 2 x {warmup + steps} steps", file=sys.stderr, flush=True)
    bar = tqdm(total=2 * (warmup + steps), unit="step", disable=silent, leave=False)

    def take(contender: Contender, numbers: Iterable[int]) -> list[Sample]:
        bar.set_description(contender.kind)
        samples = []
        for number in numbers:
            samples.append(contender.step(number))
            bar.update()
        return samples

    before, measured = range(warmup), range(warmup, warmup + steps)
    with bar, Contender("ours", job) as ours:
        begun = take(ours, before)
        if ours.memory().room:
            with Contender("three passes", job) as plain:
                other = take(plain, before)
                compare(begun[0], other[0], job.config.precision)
                return *_in_turns(take, (ours, begun), (plain, other), measured), True
        whole = Result(begun, take(ours, measured), ours.memory())
    with Contender("three passes", job) as plain:
        other = take(plain, before)
        compare(begun[0], other[0], job.config.precision)
        return whole, Result(other, take(plain, measured), plain.memory()), False


def _in_turns(
    take: Take,
    ours: tuple[Contender, list[Sample]],
    plain: tuple[Contender, list[Sample]],
    numbers: Iterable[int],
) -> list[Result]:
    """Each with its warm-up. Who goes first alternates, so that no one has the warmer caches."""
    taken: dict[str, list[Sample]] = {contender.kind: [] for contender, _ in (ours, plain)}
    for number in numbers:
        for contender, _ in (ours, plain) if number % 2 else (plain, ours):
            taken[contender.kind] += take(contender, [number])
    return [Result(begun, taken[c.kind], c.memory()) for c, begun in (ours, plain)]
