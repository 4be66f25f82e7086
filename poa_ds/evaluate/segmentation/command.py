"""poa-ds eval segmentation: linear heads on frozen features, for the class of every pixel."""

import argparse
import dataclasses
import os
from typing import Any

import numpy as np
import torch

from poa_ds.evaluate import feature_cache, score_table
from poa_ds.evaluate.feature_cache import Reader
from poa_ds.evaluate.features import TAPS
from poa_ds.evaluate.ranks import all_ranks, listening
from poa_ds.evaluate.segmentation import crops, heads, layouts
from poa_ds.evaluate.segmentation.heads import RATES
from poa_ds.evaluate.segmentation.layouts import Masked
from poa_ds.evaluate.segmentation.maps import LAST, check_taps
from poa_ds.evaluate.segmentation.scores import majority
from poa_ds.evaluate.segmentation.survey import Survey, survey
from poa_ds.evaluate.segmentation.task import Task, encoder
from poa_ds.evaluate.split import HELD_OUT, drawn
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe import checks
from poa_ds.system import arguments, dist
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError

CROP, BATCH, STEPS, RATE = 512, 16, 40_000, 1e-3  # DINOv3's linear head on ADE20K
FEW, EPOCHS = 1000, 100  # below so many images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval segmentation`."""
    layouts.add_arguments(parser)
    feature_cache.add_reader_arguments(parser)
    parser.add_argument(
        "--taps",
        choices=[LAST, *TAPS],
        default=LAST,
        help="blocks whose patch tokens are read: the last, or four, POA's or DINOv2's "
        "(%(default)s)",
    )
    parser.add_argument(
        "--crop",
        type=arguments.count,
        help=f"pixels ({CROP}, or the next multiple of the patches' size)",
    )
    parser.add_argument(
        "--stride", type=arguments.count, help="of the crops that measure (two thirds of one)"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=arguments.count, help=f"({STEPS:,} for {FEW:,} images on)")
    length.add_argument(
        "--epochs", type=arguments.count, help=f"({EPOCHS} for fewer than {FEW:,} images)"
    )
    parser.add_argument(
        "--batch", type=arguments.count, default=BATCH, help="images of a step (%(default)s)"
    )
    parser.add_argument(
        "--learning-rates",
        type=arguments.rates,
        metavar="RATE,...",
        help="(1e-4, 3e-4, 1e-3 and 3e-3)",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help=f"hold nothing out: learn from all images, with a rate of {RATE:g}",
    )
    parser.add_argument(
        "--save-every", type=arguments.count, default=1000, help="steps (%(default)s)"
    )
    parser.add_argument(
        "--memory-gb", type=arguments.positive, help="for heads and features (60%% of what is free)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, add rows to the run's evaluations.jsonl. Runs under torchrun as well.

    1 where features of a size are not finite. 75 after SIGTERM: the same command goes on.
    """
    with all_ranks() as device, listening() as asked:
        reader = Reader.of(args, device)
        checks.check_colours(reader.recipe, "eval segmentation")
        check_taps(reader.model, args.taps)
        train, val = layouts.both(args)
        crop = crop_of(reader.model, args.crop)
        if args.stride and args.stride > crop:
            raise UsageError(f"--stride {args.stride} leaves pixels out between crops of {crop}")
        steps = steps_of(len(train), args)
        tell_cost(reader, crop, steps, args)
        if args.dry_run:
            return 0
        task = task_of(reader, train, val, crop, steps, args)
        with task.groups.alone():
            rows = task.run(asked)
            if rows is not None and dist.is_main():
                score_table.keep(rows, reader.folder.evaluations, args)
                task.groups.remove()
        if rows is None:
            if dist.is_main():
                tell("stopped and saved: the same command goes on from there")
            return os.EX_TEMPFAIL
        return int(len(task.sizes) < len(reader.subnets))


def crop_of(model: ElasticBackbone, asked: int | None) -> int:
    """Pixels of a crop. UsageError: patches of the network do not fill it."""
    unit, name = model.shape.multiple()
    if asked and asked % unit:
        raise UsageError(f"--crop {asked} is not a multiple of {name}")
    return asked or -(-CROP // unit) * unit


def steps_of(images: int, args: argparse.Namespace) -> int:
    """By the number of all images, damaged ones and those that are held out too."""
    if args.epochs or not (args.steps or images >= FEW):
        return -(-(args.epochs or EPOCHS) * images // args.batch)
    return args.steps or STEPS


def tell_cost(reader: Reader, crop: int, steps: int, args: argparse.Namespace) -> None:
    """The work of learning by all sizes, from the main rank, as eval linear says it."""
    flops = sum(reader.model.flops(subnet, crop) for subnet in reader.subnets)
    to = tell if args.dry_run else say
    if dist.is_main():
        to(
            f"{steps:,} steps x {args.batch:,} crops of {crop} pixels x {len(reader.subnets)} sizes"
            f" = {steps * args.batch * flops:.2g} FLOPs"
        )


def task_of(
    reader: Reader, train: Masked, val: Masked, crop: int, steps: int, args: argparse.Namespace
) -> Task:
    """All that is to be learnt, when all masks are looked at. A collective."""
    shown = survey(train, reader.workers)
    asked = survey(dataclasses.replace(val, classes=shown.classes), reader.workers)
    learn, held = split(train, shown, args)
    sizes, places = finite(reader, crop, args.taps)
    return Task(
        reader,
        sizes,
        protocol_of(train, val, learn, held, asked, reader, crop, steps, args),
        train,
        val,
        learn,
        held,
        asked.rows,
        places,
        majority(shown.pixels, asked.pixels),
        args.save_every,
        args.memory_gb,
    )


def split(train: Masked, found: Survey, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """(rows to learn from, rows that are held out to choose a rate by)."""
    rows = found.rows
    if args.published or len(args.learning_rates or RATES) == 1:
        return rows, rows[:0]
    alike = torch.zeros(len(rows), dtype=torch.int64)
    held = drawn(alike, HELD_OUT, seed=args.seed, leaving=1).numpy()
    if not held.any():
        raise UserError(
            f"{train.place} has one image: none can be held out to choose a rate by; give one of "
            "--learning-rates"
        )
    return rows[~held], rows[held]


def finite(reader: Reader, crop: int, taps: str) -> tuple[list[Subnet], int]:
    """(sizes whose features are finite, places of their maps); the others are named."""
    black = torch.zeros(1, 3, crop, crop, dtype=torch.uint8, device=reader.readout.device)
    with torch.no_grad():
        maps = encoder(reader, reader.subnets, taps)(black)
    good = [s for s, x in zip(reader.subnets, maps, strict=True) if x.isfinite().all()]
    strange = [str(size) for size in reader.subnets if size not in good]
    if strange and dist.is_main():
        say(f"warning: left out, as their features are not finite: {', '.join(strange)}")
    if not good:
        raise UserError("no size has finite features")
    return good, maps[0].shape[1:3].numel()


def protocol_of(
    train: Masked,
    val: Masked,
    learn: np.ndarray,
    held: np.ndarray,
    asked: Survey,
    reader: Reader,
    crop: int,
    steps: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Every number of the method. published: whether they are DINOv3's, but for the images'."""
    learning_rates = args.learning_rates or ((RATE,) if args.published else RATES)
    stride = args.stride or crop * 2 // 3
    published = args.published and (learning_rates, args.taps) == ((RATE,), LAST)
    published &= (args.batch, steps, crop, stride) == (BATCH, STEPS, CROP, CROP * 2 // 3)
    return {
        "train": {"images": len(learn), "of": len(train), "index_sha256": train.hash},
        "val": {"images": len(asked.rows), "of": len(val), "index_sha256": val.hash},
        "held_out": {"images": len(held), "share": HELD_OUT} if len(held) else None,
        "layout": args.layout,
        "classes": asked.classes,
        "ignore": train.ignore,
        "resize_masks": args.resize_masks,
        "taps": args.taps,
        "resize": crop,
        "crop": crop,
        "stride": stride,
        "ratio": list(crops.RATIO),
        "flip": crops.FLIP,
        "precision": reader.readout.precision,
        "batch": args.batch,
        "steps": steps,
        "warm_up": heads.WARM_UP,
        "learning_rates": list(learning_rates),
        "weight_decay": heads.WEIGHT_DECAY,
        "seed": args.seed,
        "published": published,
    }
