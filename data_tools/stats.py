"""`poa-ds stats`: what the numbers in images are, so that a recipe can say it.

Mean and deviation are exact, over all pixels of all images; percentiles are those of evenly
spread pixels of each image, at most SAMPLED of all images together.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.parallel import ordered
from data_tools.shard import add_workers
from poa_ds.data.image.opening import Undecodable
from poa_ds.data.image.values import Values, raw
from poa_ds.data.store.index import SampleError, ShardFolder
from poa_ds.data.store.loose import LooseFolder, is_images
from poa_ds.system import paths
from poa_ds.system.arguments import whole
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.printable import printable
from poa_ds.system.progress import progress

SAMPLED = 1 << 24  # pixels that percentiles are taken of
PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)
BLOCK = 32  # images that a worker looks at before it answers, at least
JOBS = 8  # of a worker, at most
COLOURS, COLOURFUL = 3, ("saturation", "hue", "gray")  # changes that need red, green, blue
SHOWN = 3  # damaged images that are named
Job = tuple[ShardFolder, list[int], str, tuple[float, ...], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds stats`."""
    parser.add_argument(
        "place", type=paths.path, help="a folder of images, a text file of their paths, or shards"
    )
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="numbers that become 0 and 1; those beyond are cut off (default: least and"
        " largest; 0 and 255 of 8 bits)",
    )
    parser.add_argument(
        "--pages",
        choices=("first", "channels"),
        default="first",
        help="of a file with several: the first is the image, or each is a channel (%(default)s)",
    )
    parser.add_argument(
        "--images",
        type=whole,
        default=0,
        metavar="N",
        help="look at so many, evenly spread (0: all)",
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a line per channel and what a recipe says; 1 where an image could not be read."""
    if args.range and not args.range[0] < args.range[1]:
        raise UsageError("--range LOW HIGH: the first below the second")
    folder = _folder(args.place)
    count = min(args.images or len(folder), len(folder))
    ends = tuple(args.range or ())
    block = max(BLOCK, -(-count // (JOBS * max(args.workers, 1))))  # each job carries the index
    rows = [number * len(folder) // count for number in range(count)]
    jobs = [
        (folder, rows[first : first + block], args.pages, ends, SAMPLED // count + 1)
        for first in range(0, count, block)
    ]
    parts = progress(
        ordered(_look, jobs, args.workers), total=len(jobs), label="stats", unit="parts"
    )
    found, damaged = joined(parts)
    for key, cause in damaged[:SHOWN]:
        say(printable(f"damaged: {key}: {cause}"))
    if not found:
        raise UserError(f"{args.place}: none of {count} images could be read as numbers")
    about = summary(found, ends, args.pages)
    about["images"], about["damaged"] = count - len(damaged), len(damaged)
    tell(json.dumps(about, indent=2) if args.json else table(about))
    return 1 if damaged else 0


def _folder(place: Path) -> ShardFolder:
    if not place.exists():
        raise UsageError(f"{place}: no such file or folder")
    if is_images(place):
        return LooseFolder.at(place, None, values=Values(1))
    return ShardFolder.open(place)


def _look(job: Job) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """What images of a block are, image by image, and (key, cause) of the damaged ones."""
    folder, rows, pages, ends, sampled = job
    found, damaged = [], []
    for row in rows:
        try:
            found.append(image_numbers(raw(folder.read(row), pages), ends, sampled))
        except (Undecodable, SampleError) as error:
            damaged.append((folder.key(row), str(error)))
    return found, damaged


def image_numbers(
    image: np.ndarray, ends: tuple[float, ...], sampled: int = SAMPLED
) -> dict[str, Any]:
    """Of (C, H, W): its kind, and per channel pixels, mean, squares around it, least, most, sample.

    ends: what lies beyond them is cut off for mean and squares. Undecodable: not finite.
    """
    flat = image.reshape(len(image), -1)
    if not np.isfinite(flat).all():
        raise Undecodable("it has numbers that are not finite")
    cut = np.clip(flat.astype(np.float64), *ends) if ends else flat.astype(np.float64)
    mean = cut.mean(1)
    step = -(-flat.shape[1] // sampled)
    return {
        "kind": (len(image), str(image.dtype)),
        "pixels": flat.shape[1],
        "mean": mean,
        "squares": ((cut - mean[:, None]) ** 2).sum(1),
        "min": flat.min(1).astype(np.float64),
        "max": flat.max(1).astype(np.float64),
        "sample": flat[:, ::step].copy(),  # a view would keep the image
    }


def joined(
    parts: Iterable[tuple[list[dict[str, Any]], list[tuple[str, str]]]],
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """All images and all damaged ones; UserError where images differ in channels or numbers."""
    images: list[dict[str, Any]] = []
    damaged: list[tuple[str, str]] = []
    for found, bad in parts:
        images += found
        damaged += bad
    kinds = Counter(image["kind"] for image in images)
    if len(kinds) > 1:
        named = ", ".join(f"{n} of {c} channels of {t}" for (c, t), n in kinds.most_common())
        raise UserError(f"images differ: {named}; a run takes images of one kind")
    return images, damaged


def summary(
    images: list[dict[str, Any]], ends: tuple[float, ...], pages: str = "first"
) -> dict[str, Any]:
    """Per channel over all pixels of all images, and what a recipe says: in shares of the range."""
    pixels = np.array([image["pixels"] for image in images], np.float64)[:, None]
    means = np.stack([image["mean"] for image in images])
    mean = (pixels * means).sum(0) / pixels.sum()
    squares = sum(image["squares"] for image in images)
    squares = squares + (pixels * (means - mean) ** 2).sum(0)
    std = np.sqrt(squares / pixels.sum())
    least = np.min([image["min"] for image in images], axis=0)
    most = np.max([image["max"] for image in images], axis=0)
    channels, kind = images[0]["kind"]
    ordinary = (channels, kind, ends, pages) == (COLOURS, "uint8", (), "first")
    if not ends:
        ends = (0.0, 255.0) if kind == "uint8" else (float(least.min()), float(most.max()))
    if ends[0] == ends[1]:
        raise UserError(f"every number is {ends[0]:g}: there is nothing to see")
    span = ends[1] - ends[0]
    percentiles = np.percentile(
        np.concatenate([image["sample"] for image in images], axis=1), PERCENTILES, axis=1
    )
    return {
        "channels": channels,
        "numbers": kind,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "min": least.tolist(),
        "max": most.tolist(),
        "percentiles": {
            f"{p:g}": row.tolist() for p, row in zip(PERCENTILES, percentiles, strict=True)
        },
        "recipe": {
            "data.channels": channels,
            **({} if ordinary else {"data.range": list(ends)}),
            **({} if pages == "first" else {"data.pages": pages}),
            "augmentation.mean": [round(x, 5) for x in ((mean - ends[0]) / span).tolist()],
            "augmentation.std": [max(round(x, 5), 1e-5) for x in (std / span).tolist()],
            **({} if channels == COLOURS else {f"augmentation.{key}": 0 for key in COLOURFUL}),
        },
    }


def table(about: dict[str, Any]) -> str:
    """The summary as lines: one per channel, then overrides to paste."""
    head = ["channel", "mean", "std", "min", *(f"{p} %" for p in about["percentiles"]), "max"]
    columns = (about["mean"], about["std"], about["min"], *about["percentiles"].values())
    rows = [
        [str(channel), *(_short(x) for x in numbers)]
        for channel, numbers in enumerate(zip(*columns, about["max"], strict=True))
    ]
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in (head, *rows)
    ]
    told = " ".join(
        f"{key}={json.dumps(value).replace(' ', '')}" for key, value in about["recipe"].items()
    )
    noun = "channel" if about["channels"] == 1 else "channels"
    first = f"{about['images']} images of {about['channels']} {noun} of {about['numbers']}"
    return "\n".join((first, *lines, "", "in a recipe, or behind it:", f"  {told}"))


def _short(number: float) -> str:
    if number and not 1e-3 <= abs(number) < 1e7:
        return f"{number:.4g}"
    text = f"{number:.{max(0, 4 - int(math.log10(abs(number) or 1)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
