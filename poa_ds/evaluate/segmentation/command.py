"""poa-ds eval segmentation: linear heads on frozen features, for the class of every pixel."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from poa_ds.evaluate import feature_cache, score_table
from poa_ds.evaluate.feature_cache import Reader
from poa_ds.evaluate.ranks import all_ranks, listening
from poa_ds.evaluate.segmentation import crops, layouts, protocols
from poa_ds.evaluate.segmentation.heads import RATE, Schedule
from poa_ds.evaluate.segmentation.layouts import Masked
from poa_ds.evaluate.segmentation.maps import LAST, asked_for
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

CROP, BATCH = 512, 16  # DINOv3's linear head on ADE20K


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval segmentation`."""
    layouts.add_arguments(parser)
    feature_cache.add_reader_arguments(parser)
    parser.add_argument(
        "--crop",
        type=arguments.count,
        help=f"pixels ({CROP}, or the next multiple of the patches' size)",
    )
    parser.add_argument(
        "--stride", type=arguments.count, help="of the crops that measure (two thirds of one)"
    )
    parser.add_argument(
        "--batch", type=arguments.count, default=BATCH, help="images of a step (%(default)s)"
    )
    protocols.add_arguments(parser)
    parser.add_argument(
        "--published",
        action="store_true",
        help=f"hold nothing out: learn from all images, by one rate ({RATE:g}; poa: 7e-4)",
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
        train, val = layouts.both(args)
        how = How.of(reader.model, len(train), args)
        tell_cost(reader, how, args)
        if args.dry_run:
            return 0
        task = task_of(reader, train, val, how, args)
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


@dataclass(frozen=True)
class How:
    """What follows from the options, the network and the number of images."""

    taps: str
    crop: int
    stride: int
    rates: tuple[float, ...]
    schedule: Schedule

    @classmethod
    def of(cls, model: ElasticBackbone, images: int, args: argparse.Namespace) -> "How":
        """UsageError: options that do not go together."""
        taps, crop = (
            asked_for(model, protocols.given(args, "taps"), args),
            crop_of(model, args.crop),
        )
        if args.stride and args.stride > crop:
            raise UsageError(f"--stride {args.stride} leaves pixels out between crops of {crop}")
        schedule = protocols.schedule_of(protocols.steps_of(images, args), args)
        return cls(taps, crop, args.stride or crop * 2 // 3, protocols.rates_of(args), schedule)


def crop_of(model: ElasticBackbone, asked: int | None) -> int:
    """Pixels of a crop. UsageError: patches of the network do not fill it."""
    unit, name = model.shape.multiple()
    if asked and asked % unit:
        raise UsageError(f"--crop {asked} is not a multiple of {name}")
    return asked or -(-CROP // unit) * unit


def tell_cost(reader: Reader, how: How, args: argparse.Namespace) -> None:
    """The work of learning by all sizes, from the main rank, as eval linear says it."""
    steps, crop = how.schedule.steps, how.crop
    flops = sum(reader.model.flops(subnet, crop) for subnet in reader.subnets)
    to = tell if args.dry_run else say
    if dist.is_main():
        to(
            f"{steps:,} steps x {args.batch:,} crops of {crop} pixels x {len(reader.subnets)} sizes"
            f" = {steps * args.batch * flops:.2g} FLOPs"
        )


def task_of(reader: Reader, train: Masked, val: Masked, how: How, args: argparse.Namespace) -> Task:
    """All that is to be learnt, when all masks are looked at. A collective."""
    shown = survey(train, reader.workers)
    asked = survey(dataclasses.replace(val, classes=shown.classes), reader.workers)
    learn, held = split(train, shown, how.rates, args)
    sizes, places = finite(reader, how.crop, how.taps)
    return Task(
        reader,
        sizes,
        protocol_of(train, val, learn, held, asked, reader, how, args),
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


def split(
    train: Masked, found: Survey, rates: Sequence[float], args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """(rows to learn from, rows that are held out to choose a rate by)."""
    rows = found.rows
    if args.published or len(rates) == 1:
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
    how: How,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Every number of the method. published: whether they are DINOv3's, but for the images'."""
    crop, schedule = how.crop, how.schedule
    ratio, distort = protocols.given(args, "cat_max_ratio"), protocols.given(args, "distort")
    published = args.published and (how.rates, how.taps) == ((RATE,), LAST)
    published &= (args.batch, crop, how.stride) == (BATCH, CROP, CROP * 2 // 3)
    usual = Schedule.of(protocols.PROTOCOLS[protocols.DINOV3].steps)
    published &= (schedule, ratio, distort) == (usual, 1.0, False)
    return {
        "train": {"images": len(learn), "of": len(train), "index_sha256": train.hash},
        "val": {"images": len(asked.rows), "of": len(val), "index_sha256": val.hash},
        "held_out": {"images": len(held), "share": HELD_OUT} if len(held) else None,
        "layout": args.layout,
        "classes": asked.classes,
        "ignore": train.ignore,
        "resize_masks": args.resize_masks,
        "taps": how.taps,
        "resize": crop,
        "crop": crop,
        "stride": how.stride,
        "ratio": list(crops.RATIO),
        "flip": crops.FLIP,
        "cat_max_ratio": ratio,
        "distort": distort,
        "precision": reader.readout.precision,
        "batch": args.batch,
        "steps": schedule.steps,
        "warmup_steps": schedule.warm,
        "decay": schedule.decay,
        "learning_rates": list(how.rates),
        "weight_decay": schedule.weight_decay,
        "seed": args.seed,
        "published": published,
    }
