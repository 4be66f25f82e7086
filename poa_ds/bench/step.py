"""poa-ds bench step: a training step of ours beside other ways to compute it, on this machine.

A step is everything between the finished crops and the moved teacher. The others compute the same
loss from the same weights; where one does not, no figure is printed.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import torch
from tqdm import tqdm

from poa_ds.bench import report as bench_report
from poa_ds.bench.contenders import Contender, Job, Kind, Sample
from poa_ds.bench.report import Report, Result
from poa_ds.engine import engine
from poa_ds.recipe import checks, derived, ds_json, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system import files, paths, rendezvous
from poa_ds.system.arguments import count
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_kernels import dispatch

# of the losses and gradient norms: fp32 differs by the order of sums; bf16 has 8 bits, and
# autocast rounds in other places than bf16 weights do
TOLERANCE = {"fp32": 1e-4, "bf16": 2**-7}
# In a new network whose branches count little the class tokens of all images are equal but for
# their last bits. Those are all that KoLeo sees, and in bf16 every way rounds them elsewhere.
BLIND_TO_KOLEO = ("bf16",)  # at the first step, which compares
Take = Callable[[Contender, Iterable[int]], list[Sample]]
Kept = Callable[[dict[Kind, Result], bool], Report]  # (what is measured, whether in turns)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds bench step`."""
    parser.add_argument(
        "--config",
        type=paths.path,
        default=Path("photos"),
        metavar="RECIPE.yaml",
        help="shapes, sizes and precision; on a GPU bf16 unless precision=... (%(default)s)",
    )
    parser.add_argument(
        "--deepspeed_config",
        type=paths.path,
        metavar="FILE.json",
        help="the stage of ours (without: stage 0 in fp32, stage 2 in bf16)",
    )
    parser.add_argument(
        "--steps", type=count, default=20, help="measured steps of each (%(default)s)"
    )
    parser.add_argument(
        "--warmup", type=count, default=3, help="steps before; the first compares (%(default)s)"
    )
    parser.add_argument(
        "--size", default="draw", help="elastic size: WIDTHxDEPTH, a name, or draw (%(default)s)"
    )
    parser.add_argument(
        "--against",
        metavar="NAMES",
        help="which ways beside ours: three passes (the published one; poa with prototypes alone,"
        " and its default), plain (without kernels; the default of other methods), compiled"
        " (torch.compile), triton (every kernel), several, or all",
    )
    parser.add_argument(
        "--profile", action="store_true", help="of each: launches, waits, idle GPU, operators"
    )
    parser.add_argument(
        "--json",
        type=paths.path,
        metavar="FILE",
        help="all numbers, step by step; written anew after each way where they cannot alternate",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. batch.slots=1")


def run(args: argparse.Namespace) -> int:
    """Measure, compare, print; UserError when the two do not compute the same."""
    if args.json:
        files.check_out("--json", args.json)
    job = prepare(args)
    kinds = ("ours", *_others(args.against, job.device, job.recipe))
    command = " ".join([f"--config {args.config}", *args.overrides])

    def kept(results: dict[Kind, Result], in_turns: bool) -> Report:
        place = bench_report.machine(job.device)
        report = Report(command, job, place, dict(results), in_turns)
        if args.json:
            files.write_out("--json", args.json, json.dumps(report.record(), indent=1) + "\n")
        return report

    tell(_measure(job, kinds, args, kept).table())
    return 0


def _others(names: str | None, device: str, recipe: Recipe) -> tuple[Kind, ...]:
    impossible = {"ours"} | ({"triton"} if dispatch.unable(torch.device(device)) else set())
    objective, heads = recipe.objective, recipe.heads.elastic
    published = (objective.method, objective.loss, heads) == ("poa", "prototypes", "shared")
    published &= objective.koleo_students == "all"
    if not published:
        impossible |= {"three passes"}
    names = names or ("three passes" if published else "plain")
    allowed = [kind for kind in get_args(Kind) if kind not in impossible]
    chosen = allowed if names == "all" else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in allowed:
            raise UsageError(
                f"--against {name!r}: allowed with objective.method {objective.method},"
                f" objective.loss {objective.loss}, heads.elastic {heads} and"
                f" objective.koleo_students {objective.koleo_students} are"
                f" {', '.join(allowed)}, all"
            )
    return tuple(dict.fromkeys(chosen))


def prepare(args: argparse.Namespace) -> Job:
    """The checked job; all that a user may have got wrong is found here."""
    world = rendezvous.complete_environment(os.environ)["WORLD_SIZE"]
    if world != "1":
        raise UsageError(f"bench step is one process: start it without a launcher (of {world})")
    device = engine.pick_device()
    overrides = (["precision=bf16"] if device == "cuda" else []) + args.overrides
    recipe = load.recipe(args.config, overrides)
    if recipe.precision not in TOLERANCE:
        raise UsageError(f"precision {recipe.precision}: bench step measures fp32 and bf16")
    method = recipe.objective.method
    if args.size != "draw" and method in ("dspnet", "single"):
        raise UsageError(f"--size {args.size}: {method} draws no size, leave it out")
    by_prototypes = recipe.objective.loss == "prototypes"
    if method == "poa" and by_prototypes and recipe.objective.centering != "sinkhorn":
        raise UsageError(
            f"objective.centering {recipe.objective.centering}: the step that ours is measured "
            "against has sinkhorn only"
        )
    checks.check_method(recipe)
    size = None if args.size == "draw" else derived.space(recipe).parse(args.size)
    ds_file = ds_json.read(args.deepspeed_config)
    if args.deepspeed_config is None and recipe.precision == "bf16":
        ds_file = {"zero_optimization": {"stage": 2}}  # stage 0 is for fp32
    source = str(args.deepspeed_config or "without --deepspeed_config")
    ds_config = ds_json.resolved(recipe, ds_file, 1, source=source)
    return Job(recipe, ds_config, size, device)


def compare(ours: Sample, other: Sample, precision: str, kind: Kind = "three passes") -> None:
    """UserError unless loss and gradient norms of the first step agree."""
    found = {"loss": (ours.loss, other.loss)}
    for name, norm in ours.norms.items():
        found[f"gradient norm of the {name}"] = (norm, other.norms[name])
    for what, (a, b) in found.items():
        apart = abs(a - b) / max(abs(b), 1e-30)
        if not apart <= TOLERANCE[precision]:  # NaN is no agreement
            raise UserError(
                f"the two steps differ: {what} {a:.8g} (ours) and {b:.8g} ({kind}), "
                f"relative {apart:.2g}, allowed {TOLERANCE[precision]:.2g} in {precision}: "
                "no figures"
            )


def _measure(job: Job, kinds: Sequence[Kind], args: argparse.Namespace, kept: Kept) -> Report:
    """In turns, or one after the other where memory is short for all: kept after each then."""
    warmup, profile = args.warmup, args.profile
    silent, total = not sys.stderr.isatty(), warmup + args.steps
    if silent:
        say(f"measuring {len(kinds)} x {total} steps")
    bar = tqdm(total=len(kinds) * total, unit="step", disable=silent, leave=False)

    blind = job.recipe.precision in BLIND_TO_KOLEO

    def take(contender: Contender, numbers: Iterable[int]) -> list[Sample]:
        bar.set_description(contender.kind)
        samples = []
        for number in numbers:
            samples.append(contender.step(number, spread=bool(number) or not blind))
            bar.update()
        return samples

    before, measured = range(warmup), range(warmup, total)
    begun: dict[Kind, list[Sample]] = {}

    def begin(contender: Contender) -> None:
        begun[contender.kind] = take(contender, before)
        first = begun[kinds[0]][0]
        compare(first, begun[contender.kind][0], job.recipe.precision, contender.kind)

    results: dict[Kind, Result] = {}
    with bar, ExitStack() as running:
        first = running.enter_context(Contender(kinds[0], job))
        begin(first)
        if first.memory().fits(len(kinds) - 1):
            contenders = [first]
            for kind in kinds[1:]:
                contenders.append(running.enter_context(Contender(kind, job)))
                begin(contenders[-1])
            return kept(_in_turns(take, contenders, begun, measured, profile=profile), True)
        samples = take(first, measured)
        results[first.kind] = _result(first, begun[first.kind], samples, profile=profile)
        running.pop_all().close()
        report = kept(results, False)
        for kind in kinds[1:]:
            with Contender(kind, job) as contender:
                begin(contender)
                samples = take(contender, measured)
                results[kind] = _result(contender, begun[kind], samples, profile=profile)
            report = kept(results, False)
    return report


def _result(
    contender: Contender, warmup: list[Sample], samples: list[Sample], *, profile: bool
) -> Result:
    """What is asked at last; the profiler needs memory of its own."""
    memory = contender.memory()
    return Result(warmup, samples, memory, contender.profile() if profile else None)


def _in_turns(
    take: Take,
    contenders: Sequence[Contender],
    begun: dict[Kind, list[Sample]],
    numbers: Iterable[int],
    *,
    profile: bool,
) -> dict[Kind, Result]:
    """Each with its warm-up. Who goes first alternates, so that no one has the warmer caches."""
    taken: dict[Kind, list[Sample]] = {contender.kind: [] for contender in contenders}
    for number in numbers:
        at = number % len(contenders)
        for contender in (*contenders[at:], *contenders[:at]):
            taken[contender.kind] += take(contender, [number])
    return {c.kind: _result(c, begun[c.kind], taken[c.kind], profile=profile) for c in contenders}
