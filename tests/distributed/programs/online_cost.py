"""What the online probe costs: steps of `photos` without and with it, in turns, in one process.

python -m tests.distributed.programs.online_cost STEPS WORDS...     WORDS: as of poa_ds.train
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median, quantiles

import torch

from poa_ds.data.loader import train_batches
from poa_ds.data.places import open_training
from poa_ds.engine import engine
from poa_ds.engine.engine import Engine
from poa_ds.methods.method import method
from poa_ds.recipe import derived, ds_json, load
from poa_ds.recipe.tree import Recipe
from poa_ds.run import online
from poa_ds.run.online import Probe
from poa_ds.run.step import Stepper

WARMUP, ALONE = 2, 100  # steps


def stepper(recipe: Recipe, classes: int) -> Stepper:
    own = method(recipe)
    made = Engine(own.networks(), recipe.optimizer, ds_json.resolved(recipe, {}, 1))
    return Stepper(recipe, made, own, online.of_recipe(recipe, classes, made.device))


def milliseconds(work: Callable[[], object]) -> tuple[float, object]:
    """(of the processor, what came of it)."""
    start = time.process_time()
    found = work()
    return 1000 * (time.process_time() - start), found


def alone(probe: Probe, rows: int) -> float:
    """Milliseconds of one of its steps, on random rows."""
    classes, channels = len(probe.weights), probe.weights.shape[1] - 1
    features, labels = torch.randn(rows, channels), torch.randint(classes, (rows,))
    spent, _ = milliseconds(lambda: [probe.learn(features, labels) for _ in range(ALONE)])
    return spent / ALONE


def main(steps: int, words: list[str]) -> None:
    engine.start_processes("cpu")
    recipe = load.recipe(Path("photos"), words)
    folder, slots = open_training(recipe.data), recipe.batch.slots
    probed = replace(recipe.evaluation, online=replace(recipe.evaluation.online, labels=True))
    plain = stepper(recipe, len(folder.classes))
    other = stepper(replace(recipe, evaluation=probed), len(folder.classes))
    schedules, batches = derived.schedules(recipe, len(folder)), train_batches(recipe, folder)
    taken: dict[Stepper, list] = {plain: [], other: []}
    for step in range(WARMUP + steps):
        own, values = [*islice(batches, slots)], schedules.at(step)
        for each in (plain, other) if step % 2 else (other, plain):
            taken[each].append(milliseconds(partial(each.step, own, values)))
    pairs = [*zip(taken[plain], taken[other], strict=True)]
    assert all(torch.equal(a.terms["total"], b.terms["total"]) for (_, a), (_, b) in pairs)
    without, with_it = ([spent for spent, _ in found[WARMUP:]] for found in taken.values())
    rows = 2 * slots * recipe.batch.images_per_slot
    print(f"{len(folder.classes)} classes, {rows} crops; medians of {steps} steps in CPU ms:")
    low, middle, high = quantiles((b - a for a, b in zip(without, with_it, strict=True)), n=4)
    print(f"{median(without):.1f} without, {median(with_it):.1f} with;")
    print(f"of a pair {middle:+.2f}, half of them from {low:+.2f} to {high:+.2f};")
    print(f"the probe alone {alone(other.probe, rows):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
