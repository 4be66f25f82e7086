"""poa-ds bench twins: what a step of one run of all sizes costs beside a step of each size alone.

Steps alternate in one process, so that whatever else the machine does meets all alike. A step is
everything between the finished crops and the moved teacher.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from poa_ds.bench import cost
from poa_ds.bench.contenders import Job, build, measure
from poa_ds.bench.report import machine
from poa_ds.engine import engine
from poa_ds.recipe import checks, derived, ds_json, load
from poa_ds.recipe.tree import Recipe
from poa_ds.recipe.twin import twin
from poa_ds.system import files, paths
from poa_ds.system.arguments import count
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError

METHODS = ("poa", "sweet")  # whose one run stands for all sizes of the space


@dataclass(frozen=True)
class Cost:
    """Of one step: the mean of the measured ones, and counted operations.

    seconds: of the processor on a CPU, of the clock on a GPU.
    """

    seconds: float
    flops: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds bench twins`."""
    parser.add_argument(
        "--config",
        type=paths.path,
        default=Path("photos"),
        metavar="RECIPE.yaml",
        help="of method poa or sweet, small: all its networks lie in memory at once (%(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=count,
        metavar="N",
        help="a step of each network in every round (as many as there are sizes)",
    )
    parser.add_argument("--json", type=paths.path, metavar="FILE", help="every figure")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. batch.slots=1")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    recipe = load.recipe(args.config, args.overrides)
    if recipe.objective.method not in METHODS:
        raise UsageError(
            f"objective.method {recipe.objective.method}: a run of it does not stand for all sizes"
            f" of the space; one of {' or '.join(METHODS)} does"
        )
    checks.check_method(recipe)
    if args.json:
        files.check_out("--json", args.json)
    device = engine.pick_device()
    sizes = derived.space(recipe).subnets()
    recipes = {"the run": recipe, **{str(size): twin(recipe, size) for size in sizes}}
    found = measured(recipes, device, args.rounds or len(sizes))
    tell(table(found, device, " ".join([str(args.config), *args.overrides])))
    if args.json:
        record = {name: vars(each) for name, each in found.items()}
        files.write_out("--json", args.json, json.dumps(record, indent=1) + "\n")
    return 0


def measured(recipes: Mapping[str, Recipe], device: str, rounds: int) -> dict[str, Cost]:
    """Of each recipe, by its name. rounds: measured steps of each, behind one that warms up."""
    engine.start_processes(device)
    jobs = {
        name: Job(recipe, ds_json.resolved(recipe, {}, 1, source="bench twins"), None, device)
        for name, recipe in recipes.items()
    }
    steps = {name: build("ours", job) for name, job in jobs.items()}
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for number in tqdm(range(rounds + 1), desc="rounds", leave=False, disable=None):
        for name, job in jobs.items():
            sample = measure(steps[name], job.batches(number), job.values(), device)
            taken[name].append(sample.cpu_seconds if device == "cpu" else sample.seconds)
    return {
        name: Cost(mean(times[1:]), cost.flops_per_step(recipes[name]))
        for name, times in taken.items()
    }


def table(found: Mapping[str, Cost], device: str, what: str) -> str:
    """A line for each network, and the steps that one step of the run would buy of all others."""
    m, (run_, *twins) = machine(device), found.values()
    seconds, flops = (sum(values) for values in _columns(twins))
    clock = "processor time" if device == "cpu" else "time"
    rows = [("", f"{clock}, ms", "GFLOP"), *(_row(name, each) for name, each in found.items())]
    rows.append(_row(f"{len(twins)} sizes alone, together", Cost(seconds, flops)))
    wide = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    return "\n".join(
        [
            f"one training step of a run of all sizes, and of each size alone: {what}",
            f"{m.processor}, cores {m.cores}, threads {m.threads}, load {m.load:.1f}; "
            f"torch {m.torch}; {m.date}",
            "",
            *(f"{a:<{wide[0]}}{b:>{wide[1]}}{c:>{wide[2]}}" for a, b, c in rows),
            "",
            f"For one step of the run each size alone has {run_.seconds / seconds:.3f} steps in"
            f" equal {clock}, and {run_.flops / flops:.3f} for equal FLOPs.",
            "Reading images is not in it; every network reads its own.",
        ]
    )


def _columns(costs: Sequence[Cost]) -> tuple[list[float], list[float]]:
    return [each.seconds for each in costs], [each.flops for each in costs]


def _row(name: str, each: Cost) -> tuple[str, str, str]:
    return name, f"{1e3 * each.seconds:,.0f}", f"{each.flops / 1e9:,.2f}"
