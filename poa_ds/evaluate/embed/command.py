"""poa-ds embed: the features of any images, of many sizes at once: each image is decoded once.

Rows are worked on in parts that the ranks take in turn; a part is whole on the disk or not there.
"""

import argparse
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from poa_ds.checkpoint.deployed import find_teacher, load_teacher, weights_hash
from poa_ds.data.image import decoders
from poa_ds.data.image.values import Values
from poa_ds.data.places import open_folder
from poa_ds.data.workers import loaded
from poa_ds.evaluate.embed import pixels
from poa_ds.evaluate.embed import sources as image_sources
from poa_ds.evaluate.embed.files import Parts, is_there, publish
from poa_ds.evaluate.embed.sources import Images, Shards
from poa_ds.evaluate.features import READS, Readout, numbers_read
from poa_ds.evaluate.knn_protocol import Encoder
from poa_ds.evaluate.neighbours import Deal
from poa_ds.evaluate.ranks import all_ranks, held, listening
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.options import COLOURS
from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Recipe
from poa_ds.system import arguments, dist, paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UserError
from poa_ds.system.progress import progress

WHAT = ("cls", "cls+avg", "patches")
TYPES = {"fp32": torch.float32, "fp16": torch.float16}
PART_BATCHES = 16  # what a killed command may have to do again, per rank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds embed`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=paths.path, metavar="DIR", help="a tree of image files")
    source.add_argument("--shards", type=paths.place, metavar="SHARDS", help="a shard folder")
    source.add_argument(
        "--list",
        type=paths.path,
        metavar="FILE",
        help="paths of images, one a line, relative to its folder",
    )
    parser.add_argument("--out", type=paths.path, required=True, help="folder to write")
    parser.add_argument(
        "--sizes",
        type=arguments.named,
        help="all, or names and WIDTHxDEPTH, by commas (recipe's names)",
    )
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--format", choices=("safetensors", "npy", "parquet"), default="safetensors"
    )
    parser.add_argument(
        "--what",
        choices=WHAT,
        default="cls",
        help="class token, or with the mean of the patch tokens behind it (a Swin's or ResNet's "
        "class token is that mean), or every patch token",
    )
    parser.add_argument("--normalise", action="store_true", help="rows of unit length")
    parser.add_argument("--dtype", choices=list(TYPES), help="of the files (fp32; of patches fp16)")
    parser.add_argument(
        "--batch-size", type=arguments.count, help="images at a time (recipe's evaluation's)"
    )
    pixels.add_arguments(parser)
    parser.add_argument(
        "--workers", type=arguments.whole, help="loader processes per rank (recipe's)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it costs, write nothing")


def run(args: argparse.Namespace) -> int:
    """Write OUT, or go on where a killed command stopped. Runs under torchrun as well.

    1 where features are not finite: they are written, and named. 75 after SIGTERM.
    """
    with all_ranks() as device:
        model, recipe, step = load_teacher(args.run, args.step)
        seen = pixels.seen(recipe, args)
        subnets = model.space.select(args.sizes or [*model.space.names] or recipe.evaluation.sizes)
        images, readout = _images(args, recipe), Readout.of(recipe, device)
        setting = setting_of(
            weights_hash(find_teacher(args.run, args.step)),
            recipe,
            images,
            readout,
            feature=args.what,
            unit_length=args.normalise,
            dtype=args.dtype or ("fp16" if args.what == "patches" else "fp32"),
            style=args.format,
        ) | {
            "step": step,
            "sizes": [subnet.label for subnet in subnets],
            "batch_size": args.batch_size or recipe.evaluation.batch_size,
            **seen,
        }
        if is_there(args.out, setting):
            tell(f"{args.out} holds these features already")
            return 0
        tell_cost(model, subnets, setting, args.out)
        if args.dry_run:
            return 0
        workers = readout.workers if args.workers is None else args.workers
        place = args.out.absolute()
        what, name = f"poa-ds embed --out {args.out}", f".{place.name}.lock.json"
        with held(place.parent, what, name=name):
            strange = write(args.out, model, images, setting, readout, workers=workers)
        if strange is None:
            return os.EX_TEMPFAIL
        if dist.is_main():
            tell(f"{len(images):,} rows of {len(subnets)} sizes: {args.out}")
    return 1 if strange else 0


def write(
    out: Path,
    model: ElasticBackbone,
    images: Images,
    setting: dict[str, Any],
    readout: Readout,
    *,
    workers: int,
) -> dict[str, int] | None:
    """The folder OUT with these features; size -> rows that are not finite, named.

    None: stopped by SIGTERM, also in the last part, so that what follows does not begin; the same
    call goes on from there. A collective.
    """
    block = setting["batch_size"]
    subnets = [model.space.require(Subnet.read(label)) for label in setting["sizes"]]
    parts, deal = (
        Parts.beside(out),
        Deal(len(images), block * (1 if setting["feature"] == "patches" else PART_BATCHES)),
    )
    if dist.is_main():
        parts.begin(setting)
    dist.barrier()
    device = readout.device
    encode = readout.encoder(model.to(device), subnets, READS[setting["feature"]])
    work = Embedding(images, setting, encode, device, readout.values)
    todo = [span for span in deal.own() if not parts.has(span)]
    with listening() as asked:
        work.run(parts, todo, workers, asked)
    if dist.any_rank(bool(asked) or not all(map(parts.has, deal.own())), device):
        if dist.is_main():
            tell("stopped behind a whole part: the same command goes on from there")
        return None
    strange: dict[str, int] = {}
    if dist.is_main():
        spans = [range(i, min(i + deal.block, deal.rows)) for i in range(0, deal.rows, deal.block)]
        strange = publish(out, parts, spans, images, setting=setting, style=setting["format"])
        for size, count in strange.items():
            say(f"{size}: {count} rows of features are not finite")
    strange = dist.broadcast_object(strange)
    dist.barrier()
    return strange


def setting_of(
    weights: str,
    recipe: Recipe,
    images: Images,
    readout: Readout,
    *,
    feature: str,
    unit_length: bool = False,
    dtype: str = "fp32",
    style: str = "safetensors",
) -> dict[str, Any]:
    """What the rows depend on: a folder with another setting holds other features.

    weights: their hash, or what else tells them from others.
    """
    return {
        "weights_sha256": weights,
        "images_sha256": images.hash,
        "rows": len(images),
        "feature": feature,
        "unit_length": unit_length,
        "dtype": dtype,
        "resize": recipe.evaluation.resize,
        "crop": recipe.evaluation.crop,
        "mean": list(readout.mean),
        "std": list(readout.std),
        "precision": readout.precision,
        "format": style,
        **({"values": asdict(readout.values)} if readout.values else {}),
    }


@dataclass(frozen=True)
class Embedding:
    """Images to rows of features, as `setting` says."""

    images: Images
    setting: dict[str, Any]
    encode: Encoder
    device: torch.device
    values: Values | None  # what the images' numbers are; None: ordinary images

    @torch.inference_mode()
    def run(
        self, parts: Parts, spans: Sequence[range], workers: int, asked: Sequence[int] = ()
    ) -> None:
        """Work on these parts, until `asked` holds a signal; each is written when it is whole."""
        block = self.setting["batch_size"]
        batches = [span[i : i + block] for span in spans for i in range(0, len(span), block)]
        crops = _Crops(self.images, self.setting["resize"], self.setting["crop"], self.values)
        found = loaded(crops, batches, workers)
        if dist.is_main():
            found = progress(found, total=len(batches), label="embed", unit="batches")
        found = iter(found)
        for span in spans:
            if asked:
                return
            self._part(parts, span, found, -(-len(span) // block))
        assert next(found, None) is None  # and the loader ends

    def _part(
        self, parts: Parts, span: range, found: Iterator[tuple[Tensor, dict]], count: int
    ) -> None:
        rows: dict[str, list[np.ndarray]] = {size: [] for size in self.setting["sizes"]}
        damaged: dict[int, str] = {}
        for _ in range(count):
            crops, bad = next(found)
            first = span.start + sum(len(x) for x in next(iter(rows.values())))
            for size, x in zip(rows, self.encode(crops.to(self.device)), strict=True):
                x = F.normalize(x.float(), dim=-1) if self.setting["unit_length"] else x.float()
                x[[row - first for row in bad]] = float("nan")
                rows[size].append(x.to(TYPES[self.setting["dtype"]]).cpu().numpy())
            damaged |= bad
        parts.write(span, {size: np.concatenate(x) for size, x in rows.items()}, damaged)


class _Crops(Dataset[tuple[Tensor, dict[int, str]]]):
    """Numbers of images -> (views (b, C, rows, columns) of 0 to 255, causes of damaged ones)."""

    def __init__(
        self, images: Images, resize: int | str, crop: int | str, values: Values | None
    ) -> None:
        self.images, self.resize, self.crop, self.values = images, resize, crop, values
        self.decode = decoders.of(values)

    def __getitem__(self, numbers: range) -> tuple[Tensor, dict[int, str]]:
        channels = self.values.channels if self.values else COLOURS
        kind = torch.float32 if self.values else torch.uint8
        crops = torch.zeros(len(numbers), channels, *pixels.sides_of(self.crop), dtype=kind)
        damaged = {}
        for place, number in enumerate(numbers):
            try:
                image = self.decode(self.images.read(number))
                crops[place] = pixels.view(image, self.resize, self.crop)
            except (UserError, OSError) as error:
                damaged[number] = str(error)
        return crops, damaged


def _images(args: argparse.Namespace, recipe: Recipe) -> Images:
    if args.images:
        return image_sources.below(args.images)
    if args.list:
        return image_sources.listed(args.list)
    return Shards(open_folder(args.shards, recipe.data))


def tell_cost(
    model: ElasticBackbone,
    subnets: Sequence[Subnet],
    setting: dict[str, Any],
    out: Path,
    *,
    to: Callable[[str], None] = tell,
) -> None:
    """The work and the disk that it takes; UserError where the disk has less. All ranks look."""
    rows, crop, feature = setting["rows"], setting["crop"], setting["feature"]
    sides = side, other = pixels.sides_of(crop)
    if side != other:  # a square of about as many patches
        patch = model.shape.patch_size
        side = patch * round(math.sqrt(side * other) / patch)
    flops = rows * sum(model.flops(subnet, side) for subnet in subnets)
    widths = [numbers_read(model, subnet, feature, *sides) for subnet in subnets]
    size = rows * sum(widths) * TYPES[setting["dtype"]].itemsize
    if dist.is_main():
        to(f"{rows:,} images x {len(subnets)} sizes = {flops:.2g} FLOPs, {size / 1e6:.3g} MB")
    there = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    largest = rows * max(widths) * TYPES[setting["dtype"]].itemsize
    memory = psutil.virtual_memory().available
    if 2 * largest > memory:  # all rows of one size, and the bytes of its file
        raise UserError(
            f"--out {out}: the rows of one size take {2 * largest / 1e9:.3g} GB of memory, there "
            f"are {memory / 1e9:.3g} GB: fewer images"
        )
    if 2 * size > free:
        raise UserError(
            f"--out {out}: parts and files take {2 * size / 1e9:.3g} GB, the disk has "
            f"{free / 1e9:.3g} GB: fewer --sizes or images, or --dtype fp16"
        )
