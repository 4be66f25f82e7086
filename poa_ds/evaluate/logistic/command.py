"""poa-ds eval logistic: logistic regression on features of many sizes, from all labels or a few."""

import argparse
import os
import statistics
import time

import torch
from torch import Tensor

from poa_ds.evaluate import feature_cache, results, score_table, split
from poa_ds.evaluate.feature_cache import Cache, Reader
from poa_ds.evaluate.feature_sets import FeatureSet, check_alike, matched, usable
from poa_ds.evaluate.logistic import fit as logistic
from poa_ds.evaluate.ranks import all_ranks
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.evaluate.split import HELD_OUT, few
from poa_ds.system import arguments, dist
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.progress import progress

# DINOv2's features
PUBLISHED = {"feature": "cls", "unit_length": False, "resize": 256, "crop": 224}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval logistic`."""
    feature_cache.add_arguments(parser, train="to learn from", val="to measure on")
    parser.add_argument(
        "--c", type=arguments.positive, help="strength of the data (chosen on held-out images)"
    )
    split.add_arguments(parser)
    parser.add_argument(
        "--draws",
        type=arguments.count,
        default=1,
        help="of the few that are learnt from, whose mean is reported (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, add rows to the run's evaluations.jsonl. Runs under torchrun as well.

    1 where a size is not converged or not finite. 75 after SIGTERM while features are computed.
    """
    with all_ranks() as device:
        reader = Reader.of(args, device)
        places = [reader.place(name, getattr(args, name)) for name in ("train", "val")]
        with feature_cache.cache(reader, "cls", keep=args.keep_features) as cache:
            if args.dry_run:
                for place in places:
                    cache.cost(place)
                return 0
            sets = [found for place in places if (found := cache.get(place))]
            if cache.stopped:
                return os.EX_TEMPFAIL
            return _measure(cache, *sets, args, device)


def _measure(
    cache: Cache,
    train: FeatureSet,
    val: FeatureSet,
    args: argparse.Namespace,
    device: torch.device,
) -> int:
    """Sizes are dealt to the ranks; the exit status."""
    check_alike(train, val)
    asked = [str(subnet) for subnet in cache.reader.subnets] if args.sizes else None
    sizes, strange = usable([train, val], asked)
    numbers = matched(train.place, train.classes, val)
    own = sizes[dist.rank() :: dist.world_size()]
    if dist.is_main():
        own = progress(own, total=len(own), label="logistic", unit="sizes")
    rows = []
    for size in own:
        x, labels = (part.to(device) for part in train.rows(size))
        other, wanted = (part.to(device) for part in val.rows(size))
        found = score(x, labels, other, numbers.to(device)[wanted], args)
        rows.append(_row(found, size, cache.reader.step, train, val, args))
    rows = sorted(
        (row for part in dist.all_gather_objects(rows) for row in part),
        key=lambda row: sizes.index(row.size),
    )
    late = [row.size for row in rows if not row.setting["converged"]]
    if dist.is_main():
        score_table.keep(rows, cache.reader.folder.evaluations, args)
        if late:
            say(f"warning: not converged: {', '.join(late)}")
    return int(bool(late or strange))


def score(
    x: Tensor, labels: Tensor, other: Tensor, wanted: Tensor, args: argparse.Namespace
) -> dict[str, float | int | bool | None]:
    """What is found: x, labels to learn from; other, wanted to measure on.

    Of several draws the mean, and how far they lie apart; C and what it reached, of the first.
    """
    start, classes, x = time.monotonic(), int(labels.max()) + 1, x.double()
    if len(labels.unique()) == 1:
        raise UserError("the images to learn from are of one class: there is nothing to separate")
    found = []
    for seed in range(args.seed, args.seed + args.draws):
        kept = few(labels, args, seed=seed)
        c, held_out = args.c, None
        if c is None:
            try:
                c, held_out = logistic.choose(x[kept], labels[kept], classes, seed=seed)
            except ValueError as error:
                raise UserError(f"{error}; give --c 1, say") from error
        fit = logistic.fit(x[kept], labels[kept], classes, c)
        found.append((fit.percent(other, wanted), c, held_out, fit.converged))
    percent = [top1 for top1, *_ in found]
    return {
        "top1": statistics.fmean(percent),
        "spread": max(percent) - min(percent),
        "images": len(wanted),
        "learnt_from": int(kept.sum()),
        "c": found[0][1],
        "held_out": found[0][2],
        "converged": all(converged for *_, converged in found),
        "seconds": time.monotonic() - start,
    }


def _row(
    found: dict,
    size: str,
    step: int,
    train: FeatureSet,
    val: FeatureSet,
    args: argparse.Namespace,
) -> ScoreRow:
    protocol = {
        "train": train.record(found["learnt_from"]),
        "val": val.record(found["images"]),
        **train.taken(),
        "subset": args.subset,
        "shots": args.shots,
        "draws": args.draws,
        "c": args.c
        or {"from": logistic.GRID[0], "to": logistic.GRID[-1], "values": len(logistic.GRID)},
        "held_out": None if args.c else HELD_OUT,
        "seed": args.seed,
        "published": not split.amount(args)
        and not args.c
        and train.taken().items() >= PUBLISHED.items(),
    }
    names = ("c", "held_out", "converged", *(("spread",) if args.draws > 1 else ()))
    return ScoreRow(
        kind="logistic",
        step=step,
        size=size,
        metric=f"top1{split.amount(args)}",
        value=found["top1"],
        error=results.error(found["top1"], found["images"]),
        set="val",
        chosen_by="held_out" if args.c is None else "given",
        setting={name: found[name] for name in names},
        seconds=found["seconds"],
        protocol=protocol,
        torch=torch.__version__,
    )
