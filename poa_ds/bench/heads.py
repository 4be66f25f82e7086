"""poa-ds bench heads: time and peak memory of heads and losses alone, at the shapes of a recipe.

Teacher and student heads, Sinkhorn-Knopp, all cross-entropies and their gradients of one slot on
random features. Each way runs in a process of its own; their terms must agree.
"""

import argparse
import dataclasses
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from poa_ds.bench import report as bench_report
from poa_ds.bench.contenders import Job, host_bytes, start_without_interrupts
from poa_ds.bench.report import GIB
from poa_ds.engine import engine
from poa_ds.methods import targets
from poa_ds.methods.terms import Matching
from poa_ds.model.branch import Branch
from poa_ds.model.heads import HeadBank
from poa_ds.recipe import checks, derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system import files, paths
from poa_ds.system.arguments import count
from poa_ds.system.errors import UsageError, UserError
from poa_kernels import dispatch
from poa_kernels.prototype_ce_chunks import LARGE

WHOLE, PARTS, TRITON = "whole score matrices", "some rows at a time", "triton kernels"
EVERYTHING = 1 << 62  # scores: no head has so many
AGREE = 1e-3  # of the terms, relative: 16-bit operands in another order


@dataclass(frozen=True)
class Figures:
    """seconds: of each repetition. peak: bytes above weights, their gradients and inputs."""

    terms: list[float]
    seconds: list[float]
    peak: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds bench heads`."""
    parser.add_argument(
        "--config", type=paths.path, default=Path("vit_l16_in1k"), metavar="RECIPE.yaml"
    )
    parser.add_argument("--repeat", type=count, default=1, help="repetitions (%(default)s)")
    parser.add_argument("--json", type=paths.path, metavar="FILE", help="all numbers")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. precision=fp32")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.json:
        files.check_out("--json", args.json)
    device = engine.pick_device()
    recipe = load.recipe(args.config, args.overrides)
    checks.check_precision(recipe, device)
    if recipe.heads.elastic != "shared":
        raise UsageError(
            f"heads.elastic {recipe.heads.elastic}: bench heads measures heads that students share"
        )
    # not in the interpreter, which would take hours
    kernels = device == "cuda" and not dispatch.unable(torch.device(device))
    ways = [WHOLE, PARTS, *([TRITON] if kernels else [])]
    found = {way: _alone(way, recipe, device, args.repeat) for way in ways}
    first = found[WHOLE].terms
    for way, figures in found.items():
        apart = max(abs(a / b - 1) for a, b in zip(figures.terms, first, strict=True))
        if not apart <= AGREE:
            raise UserError(f"{way}: terms differ by {apart:.1e} from {WHOLE}: no figures")
    print(_table(" ".join([str(args.config), *args.overrides]), recipe, device, found))
    if args.json:
        record: dict[str, object] = {way: dataclasses.asdict(f) for way, f in found.items()}
        record["machine"] = dataclasses.asdict(bench_report.machine(device))
        files.write_out("--json", args.json, json.dumps(record, indent=1) + "\n")
    return 0


def _alone(way: str, recipe: Recipe, device: str, repeat: int) -> Figures:
    """The figures of one way, from a process that ends with it."""
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe()
    process = context.Process(target=_measure, args=(ours, way, recipe, device, repeat))
    start_without_interrupts(process)
    ours.close()
    try:
        return theirs.recv()
    except EOFError as error:
        process.join()
        raise UserError(
            f"the process of `{way}` ended with status {process.exitcode}; -9: too little memory"
        ) from error
    finally:
        process.kill()
        process.join()


def _measure(connection: Connection, way: str, recipe: Recipe, device: str, repeat: int) -> None:
    dispatch.select("triton" if way == TRITON else "reference", device)
    work = _work(recipe, device, largest=EVERYTHING if way == WHOLE else LARGE)
    held = _start_of_peak(device)
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        terms = work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    connection.send(Figures(terms.tolist(), seconds, _peak(device) - held))


def _work(recipe: Recipe, device: str, *, largest: int) -> Callable[[], torch.Tensor]:
    """A function that runs heads and losses of one slot, forward and backward; (5,) terms.

    largest: scores of a head that may lie in memory.
    """
    torch.manual_seed(0)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    place = {"dtype": dtype[recipe.precision], "device": device}
    heads, space = recipe.heads, derived.space(recipe)
    dim = derived.shape(recipe).features(space.intact)

    def bank() -> HeadBank:
        bank = HeadBank(
            dim,
            heads.prototypes,
            hidden=heads.hidden,
            bottleneck=heads.bottleneck,
            layers=heads.layers,
        )
        return bank.to(**place)

    def branch() -> Branch:
        return Branch(None, bank(), bank() if heads.separate_ibot else None)

    student, teacher = branch(), branch().requires_grad_(False)
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = Job(recipe, {}, None, device).batches(0)[0]
    views, masked = 2 * batch.size + len(batch.local_crops), len(batch.mask_indices)
    middle = space.subnets()[len(space.subnets()) // 2]
    widths = (dim, derived.shape(recipe).features(middle))
    cls = [torch.randn(views, n, **place).requires_grad_() for n in widths]
    patches = [torch.randn(masked, n, **place).requires_grad_() for n in widths]
    shown = torch.randn(2 * batch.size, dim, **place), torch.randn(masked, dim, **place)
    weights, size = batch.mask_weights, batch.size
    objective, temperature = recipe.objective, recipe.schedule.teacher_temperature

    def work() -> torch.Tensor:
        with torch.no_grad():
            projected = teacher.project([shown[0]], [shown[1]], ibot=True).for_scores()
        times = objective.sinkhorn_iterations
        chunk = largest if largest == EVERYTHING else None
        assignments = targets.balance([projected], temperature, iterations=times, chunk=chunk)[0]
        projections = student.project(cls, patches, ibot=True)
        matching = Matching(
            projections, assignments, 2, size, weights, objective.student_temperature, largest
        )
        terms = torch.cat(matching.cross_entropies())
        terms.sum().backward()
        return terms.detach()

    return work


def _start_of_peak(device: str) -> int:
    """Bytes held now; from here on the peak counts."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    return host_bytes("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else host_bytes("VmHWM")


def _table(what: str, recipe: Recipe, device: str, found: dict[str, Figures]) -> str:
    m, batch = bench_report.machine(device), recipe.batch
    rows = [f"{'':24}{'seconds':>10}{'peak GiB':>10}"]
    for way, figures in found.items():
        rows.append(f"{way:24}{min(figures.seconds):>10.3f}{figures.peak / GIB:>10.2f}")
    return "\n".join(
        [
            f"heads and losses of one slot, forward and backward: {what}",
            f"{batch.images_per_slot} images, {sum(recipe.heads.prototypes):,} prototypes in "
            f"{len(recipe.heads.prototypes)} heads, {recipe.precision}; peak above weights, "
            "gradients and inputs",
            f"{m.processor}, threads {m.threads}, load {m.load:.1f}; torch {m.torch}; {m.date}",
            "",
            *rows,
        ]
    )
