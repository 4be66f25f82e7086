"""poa-ds bench data: how many images per second this machine prepares, and where the time goes.

Beside it the published pipeline (PIL, every crop finished by a worker) and webdataset's own reader
on the same images.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from poa_ds.bench.loose_reads import reads
from poa_ds.bench.published_pipeline import published
from poa_ds.bench.report import Machine, machine
from poa_ds.data.batch import Sample, collate
from poa_ds.data.image.decoders import decoder, installed
from poa_ds.data.image.photometric import GLOBAL_1, GLOBAL_2, LOCAL, draw
from poa_ds.data.image.views import Views, views
from poa_ds.data.loader import slot_batches
from poa_ds.data.places import open_folder
from poa_ds.data.spec import BatchSpec, batch_spec
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.loose import LooseFolder
from poa_ds.data.store.order import VIEWS, Order, keyed
from poa_ds.data.stream import stream_images
from poa_ds.engine import engine
from poa_ds.recipe import load
from poa_ds.system import arguments, files, paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError

PUBLISHED_SHARE = 8  # the published pipeline is slow: it is measured on so many times fewer images
READS = 2000  # images read for the time of one read, however few are decoded


@dataclass(frozen=True)
class Figures:
    """Processor milliseconds of one image in one process, and images per second by workers."""

    images: int
    kilobytes: float  # of one encoded image
    parts: dict[str, float]
    published: float | None  # None: it knows no measurements
    stream: float | None  # webdataset's reader; None: there is no tar
    files: Mapping[str, float]  # reading from shards and files, wall milliseconds, warm and cold
    rates: dict[int, float]
    decoders: dict[str, float]  # decoding and all crops, by every decoder that is installed

    @property
    def worker(self) -> float:
        """What a worker does for an image; the colours are changed on the device."""
        return sum(self.parts[name] for name in ("read", "decode", "crop", "collate"))

    def workers_for(self, rate: float) -> int:
        return math.ceil(rate * self.worker / 1000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds bench data`."""
    parser.add_argument(
        "--config",
        type=paths.path,
        metavar="RECIPE.yaml",
        help="crops and colours (default: published)",
    )
    parser.add_argument(
        "--images", type=arguments.count, default=400, help="images of a measurement (%(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=arguments.counts,
        default="1,2",
        metavar="N,N",
        help="worker counts to measure (%(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=arguments.positive,
        default=4000,
        help="wanted images/s of a node (%(default)s)",
    )
    parser.add_argument("--json", type=paths.path, metavar="FILE", help="all numbers")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. data.train=DIR crops.local_count=0"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.json:
        files.check_out("--json", args.json)
    recipe = load.recipe(args.config, args.overrides)
    if not recipe.data.train:
        raise UsageError("data.train is empty: give data.train=DIR")
    folder, device = open_folder(recipe.data.train, recipe.data), engine.pick_device()
    torch.set_num_threads(1)
    figures = measure(folder, batch_spec(recipe), args.images, args.workers, device)
    place = machine(device)
    tell(table(folder.path, figures, place, args.rate))
    if args.json:
        record = dataclasses.asdict(figures) | {"machine": dataclasses.asdict(place)}
        files.write_out("--json", args.json, json.dumps(record, indent=1) + "\n")
    return 0


def measure(
    folder: ShardFolder, spec: BatchSpec, images: int, counts: Sequence[int], device: str
) -> Figures:
    """The figures for `images` images of the folder, repeated where it has fewer."""
    rows = Order(len(folder), spec.seed).rows(0, images)
    contents = [folder.read(int(row)) for row in rows]
    parts = _parts(folder, spec, rows, contents, device)
    slow = stream = None
    if spec.values is None:
        say("measuring the published pipeline")
        few = contents[: max(1, images // PUBLISHED_SHARE)]
        slow = _each(published(spec.crops, spec.photometric), few)
    if not isinstance(folder, LooseFolder):
        say("measuring webdataset's reader")
        sources = [str(folder.path / shard.file) for shard in folder.manifest.shards]
        stream = _stream(sources, max(images, READS))
    files = reads(folder, rows.tolist(), contents)
    rates = {}
    for workers in counts:
        say(f"measuring {workers} workers")
        rates[workers] = _rate(folder, spec, images, workers)
    kilobytes = sum(map(len, contents)) / len(contents) / 1000
    return Figures(images, kilobytes, parts, slow, stream, files, rates, _decoders(spec, contents))


def _parts(
    folder: ShardFolder,
    spec: BatchSpec,
    rows: np.ndarray,
    contents: Sequence[bytes],
    device: str,
) -> dict[str, float]:
    """Milliseconds of one image, part by part, in this process."""
    say("measuring parts")
    decode = decoder(spec.decoder, spec.crops, spec.values)
    reads = Order(len(folder), spec.seed).rows(0, max(len(rows), READS)).tolist()
    parts = {"read": _each(folder.read, reads), "decode": _each(decode, contents)}
    images = [decode(content) for content in contents[:64]]
    rngs = [keyed(VIEWS, spec.seed, place) for place in range(len(images))]
    pairs = list(zip(images, rngs, strict=True))
    parts["crop"] = _each(lambda pair: views(pair[0], spec.crops, pair[1]), pairs)
    cropped = [views(image, spec.crops, rng) for image, rng in pairs]
    samples = _samples(spec, cropped)
    masks = torch.zeros(2 * len(samples), spec.masks.grid**2, dtype=torch.bool)
    masks[:, :2] = True
    begun = time.process_time()
    batch = collate(samples, masks, step=0, slot=0)
    parts["collate"] = 1000 * (time.process_time() - begun) / len(samples)
    small = collate(samples[:16], masks[:32], step=0, slot=0) if len(samples) > 16 else batch
    small = small.to(device)
    small.augmented(spec.photometric)
    clock = time.perf_counter if device == "cuda" else time.process_time
    begun = clock()
    small.augmented(spec.photometric)
    if device == "cuda":
        torch.cuda.synchronize()
    parts["photometric"] = 1000 * (clock() - begun) / small.size
    return parts


def _decoders(spec: BatchSpec, contents: Sequence[bytes]) -> dict[str, float]:
    """Milliseconds of decoding an image and cropping it, by every decoder, in turns."""
    say("measuring decoders")
    names = installed() if spec.values is None else [spec.decoder]
    known = {name: decoder(name, spec.crops, spec.values) for name in names}
    spent = dict.fromkeys(known, 0.0)
    for place, content in enumerate([contents[0], *contents]):
        for name, decode in known.items():
            begun = time.process_time()
            views(decode(content), spec.crops, keyed(VIEWS, spec.seed, place))
            if place:  # the first loads what is needed
                spent[name] += time.process_time() - begun
    return {name: 1000 * seconds / len(contents) for name, seconds in spent.items()}


def _samples(spec: BatchSpec, cropped: Sequence[Views]) -> list[Sample]:
    kinds = (GLOBAL_1, GLOBAL_2, *[LOCAL] * spec.crops.local_count)
    found = []
    for place, crops in enumerate(cropped):
        rng = keyed(VIEWS, spec.seed, place)
        draws = [draw(rng, spec.photometric, kind) for kind in kinds]
        found.append(Sample(crops, draws, place, -1))
    return found


def _each(function: Callable, items: Sequence) -> float:
    """Processor milliseconds per item; the first is done before, to load what it needs."""
    function(items[0])
    begun = time.process_time()
    for item in items:
        function(item)
    return 1000 * (time.process_time() - begun) / len(items)


def _stream(sources: Sequence[str], images: int) -> float:
    """Processor milliseconds per image of webdataset's reader, at most `images` of them."""
    found: Iterator[bytes] = stream_images(sources)
    next(found)
    done, begun = 0, time.process_time()
    for _ in found:
        done += 1
        if done == images:
            break
    return 1000 * (time.process_time() - begun) / max(done, 1)


def _rate(folder: ShardFolder, spec: BatchSpec, images: int, workers: int) -> float:
    """Images per second of the loader, after the workers' first batches."""
    size = max(1, min(spec.images_per_slot, images // (4 * workers)))
    batches = slot_batches(dataclasses.replace(spec, images_per_slot=size), folder, workers=workers)
    for _ in range(2 * workers):
        next(batches)
    count = max(1, images // size)
    begun = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * size / (time.perf_counter() - begun)


def table(folder: Path, figures: Figures, place: Machine, rate: float) -> str:
    """What is printed; every line is a Markdown row or a sentence."""
    one = 1000 / figures.worker
    rows = [
        (name, f"{1000 * value:,.0f}", f"{1000 / value:,.0f}")
        for name, value in (
            *figures.parts.items(),
            ("a worker: read to collate", figures.worker),
            ("published pipeline (PIL, per sample), without reading", figures.published),
            ("webdataset's streaming reader, reading only", figures.stream),
        )
        if value is not None
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    decoders = [
        f"| {name} | {1000 * value:,.0f} | {1000 / value:,.0f} |"
        for name, value in figures.decoders.items()
    ]
    workers = [f"| {n} | {found:,.0f} |" for n, found in figures.rates.items()]
    beside = ""
    if figures.published is not None:
        processes = math.ceil(rate * (figures.published + figures.parts["read"]) / 1000)
        beside = f", the published pipeline {processes}"
    return "\n".join(
        [
            f"{figures.images} images of {folder}, {figures.kilobytes:.0f} kB each",
            f"{place.processor}, {place.cores} cores, torch {place.torch}, "
            f"load {place.load:.1f}, {place.date}",
            "",
            "| part, one process | processor µs per image | images/s of one core |",
            "|---|---:|---:|",
            *lines,
            "",
            "| data.decoder: decode and crop | processor µs per image | images/s of one core |",
            "|---|---:|---:|",
            *decoders,
            "",
            "| reading an image in random order | wall µs |",
            "|---|---:|",
            *(f"| {name} | {1000 * value:,.0f} |" for name, value in figures.files.items()),
            "",
            "| workers | images/s |",
            "|---:|---:|",
            *workers,
            "",
            f"{rate:,.0f} images/s need {figures.workers_for(rate)} workers "
            f"({one:,.0f} images/s each){beside}.",
        ]
    )
