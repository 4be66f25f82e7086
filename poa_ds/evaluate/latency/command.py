"""poa-ds latency: how long each size takes by itself, as `poa-ds extract` writes it.

All sizes run in rounds of changing order: what else the machine does meets all of them alike.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.evaluate import results
from poa_ds.evaluate.latency.rows import LatencyRow, Place, processor
from poa_ds.export import onnx_file
from poa_ds.export.extract import extract
from poa_ds.export.folder import LIMIT
from poa_ds.model import form
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.system import arguments, paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.run_folder import RunFolder

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_RUNS, WARM_SECONDS = 10, 1.0  # of a size, whichever ends first
MOST_RUNS = 200
BUSY = 0.5  # load per core above which times are doubtful


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds latency`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument(
        "--sizes",
        type=arguments.named,
        help="all, or names and WIDTHxDEPTH, by commas (recipe's names)",
    )
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch")
    parser.add_argument("--threads", type=arguments.count, default=1, help="of a CPU (1)")
    parser.add_argument("--batch", type=arguments.count, default=1, help="images at a time (1)")
    parser.add_argument("--precision", choices=list(TYPES), default="fp32")
    parser.add_argument("--runs", type=arguments.count, default=30, help="at least, per size (30)")
    parser.add_argument(
        "--seconds", type=arguments.positive, default=2.0, help="at least, per size (2)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it takes, run nothing")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, add the rows to the run's latency.jsonl."""
    _check(args)
    model, recipe, step = load_teacher(args.run, args.step)
    subnets = model.space.select(args.sizes or [*model.space.names] or recipe.evaluation.sizes)
    crop, load = recipe.crops.global_size, os.getloadavg()[0]
    _tell_cost(model, subnets, args)
    if args.dry_run:
        return 0
    if load > BUSY * os.cpu_count():
        say(f"warning: this machine is busy: load {load:.1f} on {os.cpu_count()} cores")
    device = torch.device(args.device)
    sides, generator = (model.shape.channels, crop, crop), torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, *sides, generator=generator)
    with _threads(args.threads), tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        calls = {}
        for subnet in subnets:
            network = extract(model, subnet, TYPES[args.precision]).network().to(device)
            given = images.to(device, TYPES[args.precision])
            if args.backend == "onnxruntime":
                network = _onnx(model, network, Path(folder), given, args.threads)
            calls[str(subnet)] = partial(network, given)
        timed = _gpu_seconds if args.device == "cuda" else _seconds
        found = measure(calls, timed, least_runs=args.runs, least_seconds=args.seconds)
    place = Place(
        args.device,
        processor(args.device),
        os.cpu_count(),
        args.threads,
        _backend(args.backend),
        args.batch,
        args.precision,
        crop,
    )
    rows = [_row(step, size, place, seconds, load) for size, seconds in found.items()]
    path = RunFolder.around(find_teacher(args.run, args.step)).latency
    for row in rows:
        results.append(path, row)
    tell(table(rows))
    tell(f"added to {path}")
    return 0


def measure(
    calls: Mapping[str, Callable[[], object]],
    timed: Callable[[Callable[[], object]], float],
    *,
    least_runs: int,
    least_seconds: float,
) -> dict[str, list[float]]:
    """Seconds of each run of each call, after a warm-up.

    A call takes part in every round until it has run at least so often and so long, or MOST_RUNS
    times. The order of a round depends on its number alone.
    """
    for call in calls.values():
        runs, spent = 0, 0.0
        while runs < WARM_RUNS and spent < WARM_SECONDS:
            runs, spent = runs + 1, spent + timed(call)
    found: dict[str, list[float]] = {name: [] for name in calls}
    most = max(MOST_RUNS, least_runs)
    going, turn = list(calls), 0
    while going:
        random.Random(turn).shuffle(going)
        for name in going:
            found[name].append(timed(calls[name]))
        going = [
            name
            for name in calls
            if len(found[name]) < most
            and (len(found[name]) < least_runs or sum(found[name]) < least_seconds)
        ]
        turn += 1
    return found


def table(rows: Sequence[LatencyRow]) -> str:
    """The rows of one place as aligned text."""
    width = max(len(row.size) for row in rows) + 2
    lines = [f"latency on {rows[0].place}, step {rows[0].step}"]
    heads = ("median ms", "p10", "p90", "images/s", "runs")
    lines.append(f"  {'size':<{width}}" + "".join(f"{head:>11}" for head in heads))
    for row in rows:
        rate = 1000 * row.place.batch / row.median
        lines.append(
            f"{'?' if row.unsteady else ' '} {row.size:<{width}}{row.median:>11.2f}{row.p10:>11.2f}"
            f"{row.p90:>11.2f}{rate:>11.3g}{row.runs:>11}"
        )
    if any(row.unsteady for row in rows):
        lines.append("? unsteady: p10 and p90 are more than 25 % of the median apart")
    if rows[0].place.device == "cuda":
        lines.append("the GPU's clocks were not locked")
    return "\n".join(lines)


def _check(args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device")
    if args.backend == "onnxruntime" and (args.device, args.precision) != ("cpu", "fp32"):
        raise UsageError("--backend onnxruntime measures on --device cpu in --precision fp32")


def _tell_cost(model: ElasticBackbone, subnets: Sequence[Subnet], args: argparse.Namespace) -> None:
    """How long it takes; UserError where the sizes do not fit into memory side by side."""
    seconds = len(subnets) * (args.seconds + WARM_SECONDS)
    tell(f"{len(subnets)} sizes, about {seconds / 60:.1f} min or {args.runs} runs of each")
    needed = 4 * sum(model.parameter_count(subnet) for subnet in subnets)
    free = psutil.virtual_memory().available
    if args.device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    if needed > free:
        raise UserError(
            f"the {len(subnets)} sizes have {needed / 1e9:.3g} GB of weights, {free / 1e9:.3g} GB "
            "are free: measure fewer --sizes at a time"
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _onnx(
    model: ElasticBackbone, network: nn.Module, folder: Path, images: Tensor, threads: int
) -> nn.Module:
    """The network in onnxruntime; UserError where it computes something else."""
    path = folder / "model.onnx"
    wanted = network(images)
    onnx_file.write(network, form.of(model.kind).feature, path, images.shape[-1])
    other = onnx_file.Network(path, threads)
    difference = (other(images) - wanted).abs().max().item()
    if not difference <= LIMIT:
        raise UserError(f"onnxruntime differs from torch by {difference:.3g}: nothing is measured")
    return other


def _backend(name: str) -> str:
    if name == "torch":
        return f"torch {torch.__version__}"
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def _seconds(call: Callable[[], object]) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def _gpu_seconds(call: Callable[[], object]) -> float:
    """By events of the device, which is idle before and after."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


def _row(step: int, size: str, place: Place, seconds: Sequence[float], load: float) -> LatencyRow:
    p10, median, p90 = (float(x) for x in np.percentile(1000 * np.array(seconds), (10, 50, 90)))
    return LatencyRow(step, size, place, median, p10, p90, len(seconds), load)
