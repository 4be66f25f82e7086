"""poa-ds eval detection: Mask R-CNN or Cascade Mask R-CNN on each size, trained whole and scored
as COCO does.
"""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed

from poa_ds.engine import engine
from poa_ds.evaluate import floors, score_table
from poa_ds.evaluate.detection import annotations
from poa_ds.evaluate.detection import settings as numbers
from poa_ds.evaluate.detection.annotations import Annotations
from poa_ds.evaluate.detection.pyramid import CHANNELS
from poa_ds.evaluate.detection.settings import Settings, nearest
from poa_ds.evaluate.feature_cache import Reader, add_reader_arguments
from poa_ds.evaluate.ranks import all_ranks, listening
from poa_ds.model.space import Subnet
from poa_ds.recipe import checks
from poa_ds.system import arguments, dist, paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval detection`."""
    parser.add_argument(
        "--coco",
        type=paths.path,
        required=True,
        metavar="ROOT",
        help="annotations/instances_train*.json and instances_val*.json, folders of images",
    )
    parser.add_argument("--boxes", action="store_true", help="boxes alone: no masks are needed")
    parser.add_argument(
        "--random-weights", action="store_true", help="start without the run: what it is worth"
    )
    add_protocol(parser)
    parser.add_argument(
        "--batch", type=arguments.count, default=numbers.BATCH, help="of a step (%(default)s)"
    )
    parser.add_argument(
        "--slots",
        type=arguments.count,
        default=8,
        help="parts of a step, which ranks divide; the images of one pass the network together "
        "(%(default)s)",
    )
    add_numbers(parser)
    parser.add_argument(
        "--save-every", type=arguments.count, default=1000, help="steps (%(default)s)"
    )
    add_reader_arguments(parser)


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """What is built and how long it learns."""
    short, poa = numbers.PROTOCOLS["short"], numbers.PROTOCOLS["poa"]
    parser.add_argument(
        "--protocol",
        choices=[*numbers.PROTOCOLS],
        default="short",
        help="whose heads and epochs are the defaults (%(default)s; poa: its table of detection's)",
    )
    parser.add_argument(
        "--heads",
        choices=get_args(numbers.Heads),
        help="what finds things in proposals: Mask R-CNN's head, or Cascade R-CNN's three "
        f"({short.heads}; poa: {poa.heads})",
    )
    parser.add_argument(
        "--epochs", type=arguments.positive, help=f"({short.epochs:g}; poa: {poa.epochs:g})"
    )


def add_numbers(parser: argparse.ArgumentParser) -> None:
    """Numbers of the optimizer and of images."""
    rows = numbers.ROWS
    for name, kind in (("lr", arguments.positive), ("layer-decay", arguments.positive)):
        values = ", ".join(f"{getattr(row, name.replace('-', '_')):g}" for row in rows)
        parser.add_argument(f"--{name}", type=kind, help=f"(of the nearer of S and B: {values})")
    values = ", ".join(f"{row.drop_path:g}" for row in rows)
    parser.add_argument("--drop-path", type=_rate, help=f"of the last block ({values})")
    parser.add_argument(
        "--weight-decay", type=_rate, default=numbers.WEIGHT_DECAY, help="(%(default)g)"
    )
    parser.add_argument(
        "--warmup-steps",
        type=arguments.whole,
        help=f"({numbers.WARMUP_STEPS}, a tenth of all at most)",
    )
    parser.add_argument(
        "--short-side",
        type=_sides,
        default=numbers.SHORT_SIDES,
        metavar="PIXELS,...",
        help="one of these is drawn for each image; the last one to measure (480 to 800 by 32)",
    )
    parser.add_argument(
        "--long-side",
        type=arguments.count,
        default=numbers.LONG_SIDE,
        help="pixels at most (%(default)s)",
    )
    parser.add_argument(
        "--channels",
        type=arguments.count,
        default=CHANNELS,
        help="of the pyramid's levels, in proportion of the heads (%(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="of the backbone's products; all weights are fp32 (bf16 on a GPU, unless the run "
        "itself was fp32)",
    )


def _sides(text: str) -> tuple[int, ...]:
    return tuple(arguments.count(part) for part in text.split(","))


def _rate(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else arguments.positive(text)


def run(args: argparse.Namespace) -> int:
    """Train and measure, print a table, add rows to the run's evaluations.jsonl.

    75 after SIGTERM: the same command goes on. Runs under torchrun as well.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise UsageError("eval detection needs pycocotools: pip install 'poa_ds[detection]'")
    if args.batch_size:
        raise UsageError("--batch-size: a detector measures images one by one; --batch is a step's")
    args = numbers.with_protocol(args)
    with all_ranks() as device, listening() as asked:
        reader = Reader.of(args, device)
        if args.random_weights:
            reader = floors.untrained(reader)
        checks.check_colours(reader.recipe, "eval detection")
        train, val = read(args.coco, masks=not args.boxes)
        wanted = {size: of_size(args, reader, size, train) for size in reader.subnets}
        tell_cost(reader, wanted, train, val, args)
        if args.dry_run:
            return 0
        if args.slots % dist.world_size():
            raise UsageError(f"--slots {args.slots}: {dist.world_size()} ranks do not divide them")
        from poa_ds.evaluate.detection.task import Task  # needs pycocotools

        precision = args.precision or ("bf16" if _prefers_bf16(reader, device) else "fp32")
        task = Task(
            reader=reader,
            settings=wanted,
            protocol=protocol(args, train, val, precision),
            train=train,
            val=val,
            boxes=args.boxes,
            heads=args.heads,
            autocast=torch.bfloat16 if precision == "bf16" else None,
            save_every=args.save_every,
        )
        alone = not torch.distributed.is_initialized()
        engine.start_processes(device.type)
        with task.groups.alone():
            rows = task.run(asked)
            if rows is not None and dist.is_main():
                score_table.keep(rows, reader.folder.evaluations, args)
                task.groups.remove()
        if rows is None and dist.is_main():
            tell("stopped and saved: the same command goes on from there")
        if alone:
            torch.distributed.destroy_process_group()
        return os.EX_TEMPFAIL if rows is None else 0


def read(root: Path, *, masks: bool) -> tuple[Annotations, Annotations]:
    """The annotations to learn from and to measure on. UserError: they do not belong together."""
    train, val = (
        annotations.read(*annotations.find(root, split), masks=masks) for split in ("train", "val")
    )
    if train.categories != val.categories:
        raise UserError(f"{train.path} and {val.path} have other categories")
    count = len(train.to_learn_from())
    if not count:
        raise UserError(f"{train.path}: no image has anything to learn from")
    if dist.is_main():
        without, dropped = len(train.pictures) - count, train.dropped + val.dropped
        if without:
            say(f"note: {without:,} images of {train.path.name} have nothing to learn from")
        if dropped:
            say(f"note: {dropped:,} annotations have empty boxes and are left out")
    return train, val


def of_size(args: argparse.Namespace, reader: Reader, size: Subnet, train: Annotations) -> Settings:
    """The numbers of one size's training: as given, or of the nearest published size."""
    row = nearest(reader.model.parameter_count(size))

    def given(name: str) -> float:
        return getattr(row, name) if getattr(args, name) is None else getattr(args, name)

    found = Settings(
        epochs=args.epochs,
        lr=given("lr"),
        layer_decay=given("layer_decay"),
        drop_path=given("drop_path"),
        weight_decay=args.weight_decay,
        batch=args.batch,
        slots=args.slots,
        warmup_steps=0,
        short_sides=args.short_side,
        long_side=args.long_side,
        channels=args.channels,
        seed=args.seed,
    )
    steps = found.steps(len(train.to_learn_from()))
    usual = min(numbers.WARMUP_STEPS, steps // 10)
    return found.with_warmup(usual if args.warmup_steps is None else args.warmup_steps)


def _prefers_bf16(reader: Reader, device: torch.device) -> bool:
    return device.type == "cuda" and reader.recipe.precision != "fp32"


def protocol(
    args: argparse.Namespace, train: Annotations, val: Annotations, precision: str
) -> dict[str, Any]:
    """Every number that all sizes share; those of one size stand in its rows."""
    return {
        "train": {"images": len(train.to_learn_from()), "sha256": train.hash},
        "val": {"images": len(val.pictures), "sha256": val.hash},
        "detector": numbers.PREFIXES[args.heads] + ("faster_rcnn" if args.boxes else "mask_rcnn"),
        "epochs": args.epochs,
        "batch": args.batch,
        "slots": args.slots,
        "weight_decay": args.weight_decay,
        "warmup_steps": args.warmup_steps,
        "short_side": list(args.short_side),
        "long_side": args.long_side,
        "channels": args.channels,
        "precision": precision,
        "seed": args.seed,
        "given": {n: getattr(args, n) for n in ("lr", "layer_decay", "drop_path")},
        "published": False,
    }


def tell_cost(
    reader: Reader,
    wanted: dict[Subnet, Settings],
    train: Annotations,
    val: Annotations,
    args: argparse.Namespace,
) -> None:
    """Steps and the operations of the backbones, from the main rank, as eval linear says them."""
    if not dist.is_main():
        return
    count, to = len(train.to_learn_from()), tell if args.dry_run else say
    for size, found in wanted.items():
        flops = reader.model.flops(size, _side(reader, found, val.pictures))
        images = found.steps(count) * found.batch
        total = (3 * images + len(val.pictures)) * flops
        to(
            f"{size}: {found.steps(count):,} steps x {found.batch} images of {count:,}, then "
            f"{len(val.pictures):,} to measure = {total:.2g} FLOPs of the backbone at most, "
            f"lr {found.lr:g}, layer decay {found.layer_decay:g}, drop path {found.drop_path:g}"
        )


def _side(reader: Reader, found: Settings, pictures: Sequence[annotations.Picture]) -> int:
    """Of a square of as many pixels as images have on average, at the largest scale."""
    areas = []
    for picture in pictures:
        short, long = sorted((picture.width, picture.height))
        scale = min(found.short_sides[-1] / short, found.long_side / long)
        areas.append(scale**2 * short * long)
    multiple, _ = reader.model.shape.multiple()
    side = (sum(areas) / len(areas)) ** 0.5
    return max(round(side / multiple), 1) * multiple
