"""poa-ds eval clusters: k-means of the features of labelled images, and how classes show in it."""

import argparse
import os
import statistics
import time

import torch
import torch.nn.functional as F

from poa_ds.evaluate import feature_cache, floors, results, score_table
from poa_ds.evaluate.clusters.kmeans import MOST, TOLERANCE, agreement, best
from poa_ds.evaluate.feature_cache import Reader
from poa_ds.evaluate.feature_sets import FeatureSet, usable
from poa_ds.evaluate.ranks import all_ranks
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.system import arguments, dist
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval clusters`."""
    feature_cache.add_arguments(parser, val="images to put into clusters")
    floors.add_arguments(parser)
    parser.add_argument(
        "--clusters", type=arguments.count, metavar="K", help="(as many as classes)"
    )
    parser.add_argument("--normalise", action="store_true", help="features of unit length")
    parser.add_argument(
        "--starts", type=arguments.count, default=10, help="the best is taken (%(default)s)"
    )
    parser.add_argument(
        "--seeds", type=arguments.count, default=3, help="whose mean is reported (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, add rows to the run's evaluations.jsonl. Runs under torchrun as well.

    1 where features of a size are not finite. 75 after SIGTERM while features are computed.
    """
    with all_ranks() as device:
        reader = Reader.of(args, device)
        place = reader.place("val", args.val)
        with feature_cache.cache(reader, "cls", keep=args.keep_features) as cache:
            rows, failed = [], False
            for own in floors.readers(reader, args, [place]):
                cache.reads(own, floors.feature(own, "cls"))
                if args.dry_run:
                    cache.cost(place)
                    continue
                val = cache.get(place)
                if val is None:
                    return os.EX_TEMPFAIL
                of_reader, whole = _measure(own, val, args, device)
                rows += floors.named(of_reader, own)
                failed |= not whole
            if dist.is_main() and not args.dry_run:
                score_table.keep(rows, reader.folder.evaluations, args)
            return int(failed)


def _measure(
    reader: Reader, val: FeatureSet, args: argparse.Namespace, device: torch.device
) -> tuple[list[ScoreRow], bool]:
    """Rows, on every rank, and whether there are those of all sizes. Sizes are dealt to ranks."""
    asked = [str(subnet) for subnet in reader.subnets] if args.sizes else None
    sizes, strange = usable([val], asked)
    own = sizes[dist.rank() :: dist.world_size()]
    if dist.is_main():
        own = progress(own, total=len(own), label="clusters", unit="sizes")
    rows = [row for size in own for row in measured(size, reader, val, args, device)]
    rows = sorted(
        (row for part in dist.all_gather_objects(rows) for row in part),
        key=lambda row: sizes.index(row.size),
    )
    return rows, not strange


def measured(
    size: str, reader: Reader, val: FeatureSet, args: argparse.Namespace, device: torch.device
) -> list[ScoreRow]:
    """A row per metric: its mean over the seeds; setting: how far they lie apart."""
    start = time.monotonic()
    x, labels = val.rows(size)
    classes = len(labels.unique())
    if classes == 1:
        raise UserError(f"all images of {val.place} are of one class: clusters say nothing of it")
    count, x = args.clusters or classes, x.double().to(device)
    if args.normalise:
        x = F.normalize(x, dim=1)
    seeds = range(args.seed, args.seed + args.seeds)
    try:
        found = [
            agreement(labels, best(x, count, starts=args.starts, seed=seed).labels)
            for seed in seeds
        ]
    except ValueError as error:
        raise UsageError(f"--clusters: {error}") from error
    protocol = {
        "val": val.record(len(labels)),
        **val.taken(),
        "normalised": args.normalise,
        "clusters": count,
        "starts": args.starts,
        "seeds": list(seeds),
        "iterations": MOST,
        "tolerance": TOLERANCE,
        "published": False,  # POA's start is unseeded, and its number of starts is not known
    }
    rows = []
    for metric in found[0]:
        values = [one[metric] for one in found]
        mean = statistics.fmean(values)
        rows.append(
            ScoreRow(
                kind="clusters",
                step=reader.step,
                size=size,
                metric=metric + reader.floor,
                value=mean,
                error=results.error(mean, len(labels)) if metric == "acc" else None,
                set="val",
                chosen_by="",
                setting={f"{metric}_spread": max(values) - min(values)},
                seconds=time.monotonic() - start,
                protocol=protocol,
                torch=torch.__version__,
            )
        )
    return rows
