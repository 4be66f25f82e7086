"""poa-ds bench gradients: what the intact and the smaller student want of the weights they share.

A run in one process that is not kept. Before some of its steps the gradient of the step's loss is
taken apart by students: which part is longer, and whether both point the same way.
"""

import argparse
import copy
import dataclasses
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor

from poa_ds.bench.report import machine
from poa_ds.data.batch import Batch
from poa_ds.data.loader import train_batches
from poa_ds.data.places import open_training
from poa_ds.engine import engine
from poa_ds.engine.networks import Networks
from poa_ds.methods.method import method
from poa_ds.methods.poa import Poa
from poa_ds.methods.targets import Assignments
from poa_ds.recipe import checks, derived, ds_json, load
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.run.step import Stepper
from poa_ds.system import files, paths
from poa_ds.system.arguments import count
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_kernels import dispatch

Gradients = dict[str, Tensor]  # by the parameters' names in the student
PARTS = 4  # of the run, in the table
METHODS = ("poa", "sweet")  # whose weights are lambda and 1 - lambda
SAID_SECONDS = 30.0  # between two lines of progress


@dataclass(frozen=True)
class Row:
    """One slot of one step. Norms are over the numbers that the smaller student uses, weighted as
    in the loss: `intact` holds lambda, `elastic` 1 - lambda. share: of all numbers of the
    module, those that it uses. cosine: between the two, nan where one is 0.

    `elastic` is the sum of what the smaller student learns from the teacher (`taught`) and from the
    intact one (`imitated`, with its weight); their cosines are with `intact` too.
    """

    step: int
    size: str
    module: str
    share: float
    intact: float
    elastic: float
    cosine: float
    taught: float
    taught_cosine: float
    imitated: float
    imitated_cosine: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds bench gradients`."""
    parser.add_argument(
        "--config",
        type=paths.path,
        default=Path("photos"),
        metavar="RECIPE.yaml",
        help="of method poa or sweet (%(default)s)",
    )
    parser.add_argument("--steps", type=count, metavar="N", help="of the run (the recipe's)")
    parser.add_argument(
        "--every", type=count, default=5, metavar="N", help="steps between two looks (%(default)s)"
    )
    parser.add_argument("--json", type=paths.path, metavar="FILE", help="every look")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. seed=1")


def run(args: argparse.Namespace) -> int:
    """Train, look, print."""
    recipe = load.recipe(args.config, args.overrides)
    if recipe.objective.method not in METHODS:
        raise UsageError(
            f"objective.method {recipe.objective.method}: gradients are told apart for poa and"
            " sweet, which train an intact and a smaller student"
        )
    device = engine.pick_device()
    if recipe.precision != "fp32":
        raise UsageError(f"precision {recipe.precision}: gradients are compared in fp32")
    checks.check_method(recipe)
    trained = method(recipe)
    assert isinstance(trained, Poa)
    if args.json:
        files.check_out("--json", args.json)
    rows: list[Row] = []
    for row in _told(looks(recipe, trained, device, args.steps, args.every)):
        rows.append(row)
        if args.json:
            text = json.dumps([dataclasses.asdict(row) for row in rows]) + "\n"
            files.write_out("--json", args.json, text)
    if not rows:
        raise UserError("in none of these steps does a smaller student learn: take more --steps")
    tell(_table(rows, recipe, device, " ".join([str(args.config), *args.overrides])))
    return 0


def looks(
    recipe: Recipe, trained: Poa, device: str, steps: int | None, every: int
) -> Iterator[Row]:
    """A run of the recipe; rows of each slot before every `every`-th step. steps: the recipe's."""
    dispatch.select(recipe.kernels, device, compiled=recipe.compile)
    engine.start_processes(device)
    images = open_training(recipe.data)
    schedules = derived.schedules(recipe, len(images))
    networks = trained.networks()
    config = ds_json.resolved(recipe, {}, 1, source="bench gradients")
    stepper = Stepper(recipe, engine.Engine(networks, recipe.optimizer, config), trained)
    batches = train_batches(recipe, images, workers=recipe.data.workers)
    for number in range(steps or schedules.total_steps):
        own = [next(batches) for _ in range(recipe.batch.slots)]
        values = schedules.at(number)
        if number % every == 0 and values.all_sizes:  # not while the intact one learns alone
            yield from _look(stepper, trained, own, values)
        stepper.step(own, values)


def _look(
    stepper: Stepper, trained: Poa, batches: Sequence[Batch], values: StepValues
) -> Iterator[Row]:
    """Of every slot of the step that comes next; nothing moves."""
    forward, device = stepper.engine.forward, stepper.engine.device
    shown = [b.to(device).augmented(stepper.photometric) for b in batches]
    targets, _ = trained.targets(forward, shown, values, stepper.state)
    for batch, target in zip(shown, targets, strict=True):
        find = partial(gradients, trained, stepper.engine.networks, batch, target, values)
        weight = trained.weights[0]
        intact = {n: weight * g for n, g in find(1.0).items()}
        taught = {n: (1 - weight) * g for n, g in find(0.0, imitation=0.0).items()}
        elastic = {n: (1 - weight) * g for n, g in find(0.0).items()}
        size = str(trained.sizes(batch.step, batch.slot)[1])
        for module in dict.fromkeys(name.split(".")[0] for name in intact):
            names = [name for name in intact if name.split(".")[0] == module]
            yield compared(
                batch.step,
                size,
                module,
                *(
                    torch.cat([part[n].flatten() for n in names])
                    for part in (intact, elastic, taught)
                ),
            )


def gradients(
    trained: Poa,
    networks: Networks,
    batch: Batch,
    target: Assignments,
    values: StepValues,
    share: float,
    *,
    imitation: float | None = None,
) -> Gradients:
    """Of one slot's terms towards teacher and intact student, without KoLeo. share: the weight of
    the intact student, 1 or 0: then these are its own ones, or the smaller student's. imitation:
    another weight than the recipe's."""
    alone = copy.copy(trained)
    alone.imitation = trained.imitation if imitation is None else imitation
    alone.objective = dataclasses.replace(trained.objective, intact_weight=share, koleo=0.0)
    total, _ = alone.loss(networks, batch, target, values)
    parameters = networks.trained()
    found = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def compared(
    step: int, size: str, module: str, intact: Tensor, elastic: Tensor, taught: Tensor
) -> Row:
    """intact, elastic, taught: (N,), what each adds to the gradient of the same N numbers; elastic
    holds taught."""
    used = elastic != 0  # exactly: what a slice does not use has no gradient
    ours, theirs, learned = (part[used].double() for part in (intact, elastic, taught))
    parts = (theirs, learned, theirs - learned)
    figures = [x for part in parts for x in (float(part.norm()), _cosine(ours, part))]
    return Row(step, size, module, float(used.double().mean()), float(ours.norm()), *figures)


def _cosine(a: Tensor, b: Tensor) -> float:
    """nan where one is 0."""
    both = float(a.norm() * b.norm())
    return float(a @ b) / both if both else math.nan


def _told(rows: Iterator[Row]) -> Iterator[Row]:
    """The same, with a word now and then: a run takes minutes."""
    said = time.monotonic()
    for row in rows:
        if time.monotonic() - said >= SAID_SECONDS:
            said = time.monotonic()
            say(f"step {row.step:,}")
        yield row


def _table(rows: Sequence[Row], recipe: Recipe, device: str, what: str) -> str:
    """By module and width of the smaller student, over the parts of the run."""
    m, weight = machine(device), recipe.objective.intact_weight
    last = max(row.step for row in rows) + 1
    return "\n".join(
        [
            f"gradients of the two students on the weights that both use: {what}",
            f"{m.processor}, threads {m.threads}; torch {m.torch}; {m.date}",
            f"ratio: smaller / intact, weighted {1 - weight:g} and {weight:g} as in the loss; "
            f"medians over each part of {last} steps",
            *_lines(rows, "all terms of the smaller student", lambda r: (r.elastic, r.cosine)),
            *_lines(rows, "towards the teacher", lambda r: (r.taught, r.taught_cosine)),
            *_lines(rows, "towards the intact one", lambda r: (r.imitated, r.imitated_cosine)),
        ]
    )


def _lines(
    rows: Sequence[Row], title: str, part: Callable[[Row], tuple[float, float]]
) -> Iterator[str]:
    """part: the norm of it and its cosine with the intact student's."""
    last, found = max(row.step for row in rows) + 1, defaultdict(list)
    for row in rows:
        found[row.module, int(row.size.split("x")[0])].append((row.step * PARTS // last, row))
    yield ""
    yield title
    yield f"{'module':<10}{'width':>6}{'share':>8}  {'ratio of norms':<{12 * PARTS}}cosine"
    for (module, width), looked in sorted(found.items()):
        share = mean(row.share for _, row in looked)
        parts = [[row for k, row in looked if k == wanted] for wanted in range(PARTS)]
        ratios = [_middle(part(r)[0] / r.intact for r in rows_ if r.intact) for rows_ in parts]
        cosines = [_middle(part(row)[1] for row in rows_) for rows_ in parts]
        yield (
            f"{module:<10}{width:>6}{share:>8.2f}  "
            + "".join(f"{x:<12.2f}" for x in ratios)
            + "".join(f"{x:<8.2f}" for x in cosines)
        )


def _middle(values: Iterable[float]) -> float:
    finite = [x for x in values if math.isfinite(x)]
    return median(finite) if finite else math.nan
