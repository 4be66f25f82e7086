"""poa-ds eval linear: linear classifiers on frozen features, 52 of each size in one pass."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from poa_ds.evaluate import classes, corruptions, feature_cache, floors, measured, score_table
from poa_ds.evaluate import split as of_labels
from poa_ds.evaluate.embed.sources import Part, Shards
from poa_ds.evaluate.feature_cache import Cache, Reader, is_features
from poa_ds.evaluate.feature_sets import usable
from poa_ds.evaluate.features import STAGES, TAPS
from poa_ds.evaluate.linear import data as linear_data
from poa_ds.evaluate.linear.classifiers import MOMENTUM, RATES
from poa_ds.evaluate.linear.data import RandomCrops
from poa_ds.evaluate.linear.task import Task
from poa_ds.evaluate.measured_sets import lists_of, measured_sets, say_corruptions
from poa_ds.evaluate.ranks import all_ranks, listening
from poa_ds.evaluate.real import Real
from poa_ds.evaluate.score_rows import BEST_ON_VAL, OF_RANDOM, ScoreRow
from poa_ds.evaluate.split import HELD_OUT, drawn, few
from poa_ds.model.space import Subnet
from poa_ds.system import arguments, dist
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError

BATCH, STEPS = 2048, 12_500  # POA's; how many epochs that is depends on the images
FEW, EPOCHS, FEW_BATCH = 200_000, 40, 256  # below so many images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval linear`."""
    feature_cache.add_arguments(
        parser, shards_alone=True, train="to learn from", val="to measure on"
    )
    of_labels.add_arguments(parser)
    measured.add_arguments(parser)
    floors.add_arguments(parser)
    classes.add_arguments(parser)
    parser.add_argument(
        "--crops",
        choices=("random", "centre"),
        default="random",
        help="seen anew in every step, or features of one crop of each image: a twentieth of the "
        "work or less, to rank sizes by (%(default)s)",
    )
    parser.add_argument(
        "--taps",
        choices=list(TAPS),
        help="blocks: POA's or DINOv2's (even4; a Swin's or ResNet's features are the means of its "
        "four stages)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=arguments.count, help=f"({STEPS:,} for {FEW:,} images on)")
    length.add_argument(
        "--epochs", type=arguments.count, help=f"({EPOCHS} for fewer than {FEW:,} images)"
    )
    parser.add_argument(
        "--batch", type=arguments.count, help=f"of a step ({BATCH:,}, or {FEW_BATCH} for few)"
    )
    parser.add_argument(
        "--learning-rates",
        type=arguments.rates,
        default=RATES,
        metavar="RATE,...",
        help="for batches of 256 (13 from 1e-5 to 0.1)",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="hold nothing out: learn from all images and choose on those that are measured on",
    )
    parser.add_argument(
        "--save-every", type=arguments.count, default=1250, help="steps (%(default)s)"
    )
    parser.add_argument(
        "--memory-gb", type=arguments.positive, help="for classifiers (60%% of what is free)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, add rows to the run's evaluations.jsonl. Runs under torchrun as well.

    1 where features of a size are not finite. 75 after SIGTERM: the same command goes on.
    """
    with all_ranks() as device, listening() as asked:
        reader = Reader.of(args, device)
        places = [reader.place(name, getattr(args, name)) for name in ("train", "val")]
        tests = measured.tests(args)
        for name, place in zip(("train", "val", *tests), (*places, *tests.values()), strict=True):
            if is_features(place):
                raise UsageError(f"{name}: {place} holds features: eval linear reads shards")
        with feature_cache.cache(reader, feature(reader, args), keep=args.keep_features) as cache:
            train, val = map(cache.images, places)
            learn, held = split(train, args)
            lists = lists_of(cache, places[1], args)
            say_corruptions(cache, args)
            rows, tasks, taps = [], [], cache.feature
            for own in floors.readers(reader, args, places):
                if dist.any_rank(bool(asked), device):
                    cache.stopped = True
                    return os.EX_TEMPFAIL
                cache.reads(own, floors.feature(own, taps))
                protocol = protocol_of(train, val, learn, held, cache, args)
                tell_cost(protocol, own, args)
                if args.dry_run:
                    for place in (*places[args.crops == "random" :], *tests.values()):
                        cache.cost(place)
                    continue
                found = task(cache, train, val, learn, held, protocol, lists, args)
                if found:  # until the command ends
                    cache.own.enter_context(found.groups.alone())
                of_reader = found.run(asked) if found else None
                if of_reader is None:
                    if found and dist.is_main():
                        tell("stopped and saved: the same command goes on from there")
                    cache.stopped = True
                    return os.EX_TEMPFAIL
                tasks.append(found)
                rows += floors.named(of_reader, own)
            if tasks and dist.is_main():
                score_table.keep(corruptions.gathered(rows, args), reader.folder.evaluations, args)
                say_ends(rows, args.learning_rates)
                for found in tasks:  # the first too lasts until all are done
                    found.groups.remove()
            return int(any(len(found.sizes) < len(found.reader.subnets) for found in tasks))


def feature(reader: Reader, args: argparse.Namespace) -> str:
    """What is read out. UsageError: --taps of a backbone whose blocks are not read out."""
    if not reader.model.reads_stages:
        return args.taps or "even4"
    if args.taps:
        raise UsageError(
            f"--taps {args.taps}: of a {reader.model.kind} the means of its four stages are read "
            "out, leave it away"
        )
    return STAGES


def split(train: Shards, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """(rows to learn from, rows that are held out) of the images that have a class, or few."""
    rows = np.flatnonzero(train.folder.labels >= 0)
    kept = few(
        torch.from_numpy(train.folder.labels[rows]),
        args,
        seed=args.seed,
        keys=lambda: [train.folder.key(row) for row in rows],
    )
    rows = rows[kept.numpy()]
    labels = torch.from_numpy(train.folder.labels[rows])
    if len(labels.unique()) < 2:
        what = "one class: there is nothing to separate" if len(rows) else "no class"
        raise UserError(f"the images of {train.folder.path} have {what}")
    if args.published:
        return rows, rows[:0]
    held = drawn(labels, HELD_OUT, seed=args.seed, leaving=1).numpy()
    if not held.any():
        raise UserError(
            f"no class of {train.folder.path} has two images: none can be held out to choose a "
            "rate by; --published chooses on the validation images"
        )
    return rows[~held], rows[held]


def protocol_of(
    train: Shards,
    val: Shards,
    learn: np.ndarray,
    held: np.ndarray,
    cache: Cache,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Every number of the method.

    published: whether they are POA's (or, with last4, DINOv2's), but for precision and images.
    """
    reader, many = cache.reader, len(learn) >= FEW
    batch = args.batch or (BATCH if many else FEW_BATCH)
    steps = args.steps or STEPS
    if args.epochs or not (many or args.steps):
        steps = -(-(args.epochs or EPOCHS) * len(learn) // batch)
    options = reader.recipe.evaluation
    measured = int((val.folder.labels >= 0).sum())
    if not measured:
        raise UserError(f"{val.folder.path} has no labels")
    published = (
        args.published
        and not of_labels.amount(args)
        and args.crops == "random"
        and cache.feature in TAPS
        and args.learning_rates == RATES
    )
    published &= (batch, steps, options.resize, options.crop) == (BATCH, STEPS, 256, 224)
    return {
        "train": {"images": len(learn), "of": len(train), "index_sha256": train.hash},
        "val": {"images": measured, "of": len(val), "index_sha256": val.hash},
        "held_out": {"images": len(held), "share": HELD_OUT} if len(held) else None,
        "crops": args.crops,
        "scale": list(linear_data.SCALE) if args.crops == "random" else None,
        "flip": linear_data.FLIP if args.crops == "random" else None,
        "taps": cache.feature,
        "resize": options.resize,
        "crop": options.crop,
        "precision": reader.readout.precision,
        "batch": batch,
        "steps": steps,
        "learning_rates": list(args.learning_rates),
        "momentum": MOMENTUM,
        "subset": of_labels.subset_record(args),
        "shots": args.shots,
        "seed": args.seed,
        "published": published,
    }


def tell_cost(protocol: dict[str, Any], reader: Reader, args: argparse.Namespace) -> None:
    """The work of all sizes, from the main rank: what a dry run is asked for, else beside it."""
    flops = sum(reader.model.flops(subnet, protocol["crop"]) for subnet in reader.subnets)
    steps, batch, count = protocol["steps"], protocol["batch"], len(reader.subnets)
    to = tell if args.dry_run else say
    if dist.is_main():
        work = f"{steps:,} steps x {batch:,} images x {count} sizes"
        if args.crops == "random":
            to(f"{work} = {steps * batch * flops:.2g} FLOPs")
        else:
            to(f"{work}, on features of one crop of each image")


def task(
    cache: Cache,
    train: Shards,
    val: Shards,
    learn: np.ndarray,
    held: np.ndarray,
    protocol: dict[str, Any],
    lists: Real | None,
    args: argparse.Namespace,
) -> Task | None:
    """All that is to be trained, with the features that it needs. None: stopped. A collective."""
    every = {"val": val} | {n: cache.images(place) for n, place in measured.tests(args).items()}
    for other in every.values():
        if train.hash == other.hash:
            raise UsageError(f"{train.folder.path} and {other.folder.path} hold the same images")
    fixed, apart = None, None
    asked = {name: found for name, images in every.items() if (found := cache.of(images))}
    if not cache.stopped and args.crops == "centre":
        fixed = cache.of(train)
    elif not cache.stopped and len(held):
        apart = cache.of(Part(train, held))
    if cache.stopped:
        return None
    sizes, _ = usable([*asked.values(), *(found for found in (fixed, apart) if found)])
    if not sizes:
        raise UserError("no size has finite features")
    sets = measured_sets(str(train.folder.path), train.classes, asked, sizes, lists, args)

    def held_rows(size: str) -> tuple[torch.Tensor, torch.Tensor]:
        return apart.rows(size) if apart else fixed.rows(size, held)

    # damaged images are none of those that are measured on
    protocol["val"] |= sets[0].record
    if len(held):
        protocol["held_out"] |= {"images": len(held_rows(sizes[0])[1])}
    return Task(
        cache.reader,
        [Subnet.read(size) for size in sizes],
        protocol,
        len(train.classes),
        sets[0],
        held_rows if len(held) else None,
        (lambda size: fixed.rows(size, learn)) if fixed else None,
        None
        if fixed
        else RandomCrops(train.folder, learn, protocol["crop"], protocol["batch"], args.seed),
        args.save_every,
        args.memory_gb,
        of_labels.amount(args),
        sets[1:],
    )


def say_ends(rows: Sequence[ScoreRow], learning_rates: Sequence[float]) -> None:
    """Which sizes chose the first or last rate: another might be better."""
    published = all(row.chosen_by == BEST_ON_VAL for row in rows)
    for rate, what in ((learning_rates[0], "smallest"), (learning_rates[-1], "largest")):
        sizes = dict.fromkeys(
            row.size + " (random weights)" * (row.floor == OF_RANDOM)
            for row in rows
            if row.setting["rate"] == rate and (published or row.chosen_by != BEST_ON_VAL)
        )
        if sizes:
            say(
                f"the best rate of {', '.join(sizes)} is the {what}, {rate:g}: --learning-rates "
                "may go beyond it"
            )
