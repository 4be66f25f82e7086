"""poa-ds eval logistic: logistic regression on features of many sizes, from all labels or a few."""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from poa_ds.evaluate import (
    accuracies,
    classes,
    corruptions,
    feature_cache,
    floors,
    measured,
    score_table,
    split,
)
from poa_ds.evaluate.accuracies import best_first
from poa_ds.evaluate.feature_cache import Cache, Reader
from poa_ds.evaluate.feature_sets import FeatureSet, check_alike, usable
from poa_ds.evaluate.logistic import fit as logistic
from poa_ds.evaluate.measured import Measured
from poa_ds.evaluate.measured_sets import lists_of, measured_sets, say_corruptions
from poa_ds.evaluate.ranks import all_ranks
from poa_ds.evaluate.real import Real
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.evaluate.split import HELD_OUT, few
from poa_ds.system import arguments, dist
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.progress import progress

# DINOv2's features
PUBLISHED = {"feature": "cls", "unit_length": False, "resize": 256, "crop": 224}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval logistic`."""
    feature_cache.add_arguments(parser, train="to learn from", val="to measure on")
    parser.add_argument(
        "--c", type=arguments.positive, help="strength of the data (chosen on held-out images)"
    )
    split.add_arguments(parser, draws=True)
    measured.add_arguments(parser)
    floors.add_arguments(parser)
    classes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, add rows to the run's evaluations.jsonl. Runs under torchrun as well.

    1 where a size is not converged or not finite. 75 after SIGTERM while features are computed.
    """
    split.draws_of(args)
    if args.c is None and args.shots and 1 in args.shots:
        raise UsageError(
            "--shots 1: of one image a class none can be held out to choose C by; give it (--c 1)"
        )
    with all_ranks() as device:
        reader = Reader.of(args, device)
        places = [reader.place(name, getattr(args, name)) for name in ("train", "val")]
        places += measured.tests(args).values()
        with feature_cache.cache(reader, "cls", keep=args.keep_features) as cache:
            lists = lists_of(cache, places[1], args)
            say_corruptions(cache, args)
            rows, failed = [], False
            for own in floors.readers(reader, args, places):
                cache.reads(own, floors.feature(own, "cls"))
                if args.dry_run:
                    for place in places:
                        cache.cost(place)
                    continue
                sets = [found for place in places if (found := cache.get(place))]
                if cache.stopped:
                    return os.EX_TEMPFAIL
                of_reader, whole = _measure(cache, *sets, lists=lists, args=args, device=device)
                rows += floors.named(of_reader, own)
                failed |= not whole
            if dist.is_main() and not args.dry_run:
                score_table.keep(corruptions.gathered(rows, args), reader.folder.evaluations, args)
            return int(failed)


def _measure(
    cache: Cache,
    train: FeatureSet,
    *found: FeatureSet,
    lists: Real | None,
    args: argparse.Namespace,
    device: torch.device,
) -> tuple[list[ScoreRow], bool]:
    """Rows, on every rank, and whether there are those of all sizes, converged.

    Sizes are dealt to the ranks. found: validation images, then --test's.
    """
    for other in found:
        check_alike(train, other)
    asked = [str(subnet) for subnet in cache.reader.subnets] if args.sizes else None
    sizes, strange = usable([train, *found], asked)
    names = ("val", *measured.tests(args))
    by_name = dict(zip(names, found, strict=True))
    sets = measured_sets(train.place, train.classes, by_name, sizes, lists, args)
    own = sizes[dist.rank() :: dist.world_size()]
    if dist.is_main():
        own = progress(own, total=len(own), label="logistic", unit="sizes")
    rows = []
    for size in own:
        x, labels = (part.to(device) for part in train.rows(size))
        for few_of in split.each(args):
            keys = partial(train.keys_of, size)
            learnt = score(x, labels, size, sets, few_of, keys=keys)
            rows += _rows(learnt, size, cache.reader, train, sets, few_of)
    rows = sorted(
        (row for part in dist.all_gather_objects(rows) for row in part),
        key=lambda row: sizes.index(row.size),
    )
    late = dict.fromkeys(row.size for row in rows if not row.setting["converged"])
    if late and dist.is_main():
        say(f"warning: not converged: {', '.join(late)}")
    return rows, not (late or strange)


@dataclass(frozen=True)
class Found:
    """accuracies: set -> metric -> mean of the draws. c, held_out: of the first draw."""

    accuracies: Mapping[str, accuracies.Found]
    spread: Mapping[str, Mapping[str, float]]
    learnt_from: int
    c: float
    held_out: float | None
    converged: bool
    seconds: float


def score(
    x: Tensor,
    labels: Tensor,
    size: str,
    sets: Sequence[Measured],
    args: argparse.Namespace,
    *,
    keys: Callable[[], Sequence[str]] | None = None,
) -> Found:
    """What is learnt from x, labels, and found on the sets; keys: of the images of x."""
    start, count, x = time.monotonic(), int(labels.max()) + 1, x.double()
    if len(labels.unique()) == 1:
        raise UserError("the images to learn from are of one class: there is nothing to separate")
    fits, every, learnt_from = [], [], 0
    for seed in range(args.seed, args.seed + split.draws_of(args)):
        kept = few(labels, args, seed=seed, keys=keys)
        c, held_out, learnt_from = args.c, None, int(kept.sum())
        if c is None:
            try:
                c, held_out = logistic.choose(x[kept], labels[kept], count, seed=seed)
            except ValueError as error:
                raise UserError(f"{error}; give --c 1, say") from error
        fit = logistic.fit(x[kept], labels[kept], count, c)
        fits.append((c, held_out, fit.converged))
        found = {}
        for of in sets:
            among = None if of.among is None else of.among[:count]
            first = best_first(fit.scores(of.rows(size)[0].to(x.device)), among)
            found[of.name] = of.accuracies(size, first, count)
        every.append(found)
    c, held_out, _ = fits[0]
    by_set = {of.name: [one[of.name] for one in every] for of in sets}
    return Found(
        {name: accuracies.mean(draws) for name, draws in by_set.items()},
        {name: accuracies.spread(draws) for name, draws in by_set.items()},
        learnt_from,
        c,
        held_out,
        all(converged for *_, converged in fits),
        time.monotonic() - start,
    )


def _rows(
    found: Found,
    size: str,
    reader: Reader,
    train: FeatureSet,
    sets: Sequence[Measured],
    args: argparse.Namespace,
) -> list[ScoreRow]:
    grid = {"from": logistic.GRID[0], "to": logistic.GRID[-1], "values": len(logistic.GRID)}
    protocol = {
        "train": train.record(found.learnt_from),
        "val": sets[0].record,
        **train.taken(),
        "subset": split.subset_record(args),
        "shots": args.shots,
        "draws": split.draws_of(args),
        "c": args.c or grid,
        "held_out": None if args.c else HELD_OUT,
        "seed": args.seed,
        "published": not split.amount(args)
        and not args.c
        and train.taken().items() >= PUBLISHED.items(),
    }
    setting = {"c": found.c, "held_out": found.held_out, "converged": found.converged}
    about = {"step": reader.step, "size": size, "seconds": found.seconds}
    about |= {"chosen_by": "held_out" if args.c is None else "given"}
    rows, amount = [], split.amount(args) + reader.floor
    for of in sets:
        for metric, accuracy in found.accuracies[of.name].items():
            spread = {"spread": found.spread[of.name][metric]} if protocol["draws"] > 1 else {}
            own = {metric: accuracy}
            given = about | {"setting": setting | spread}
            rows += of.score_rows("logistic", own, protocol, amount=amount, **given)
    return rows
