"""data.mode=stream: tars that can only be read from front to back, such as pipes.

webdataset opens the sources and expands their braces; the tars are walked strictly, as its own
reader takes damage for their end, and unpacked on the way. Which image comes when depends on ranks
and workers, and a run that continues reads other images: shard folders have neither weakness.
"""

import dataclasses
import hashlib
import lzma
import random
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import webdataset
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls

from poa_ds.data.assemble import bounded, prepared
from poa_ds.data.batch import Bad, Batch, Sample, collate
from poa_ds.data.image.decoders import decoder
from poa_ds.data.image.opening import Undecodable
from poa_ds.data.spec import BatchSpec
from poa_ds.data.store.fetch import Incoming, is_http
from poa_ds.data.store.forward import Forward
from poa_ds.data.store.index import SampleError
from poa_ds.data.store.leftovers import leftover
from poa_ds.data.store.order import MASKS, STREAM, keyed
from poa_ds.data.store.scan import (
    CLASS,
    IMAGES,
    LARGEST_IMAGE,
    class_of,
    is_number,
    listed,
    split_name,
)
from poa_ds.data.store.tarwalk import tar_members
from poa_ds.data.workers import loaded
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.printable import printable

BUFFER = 1000  # encoded images of a worker that are mixed
Image = tuple[str, str, bytes, int]  # source, key, encoded, label


class Stream:
    """Sources in the place of a shard folder; `images` is what the recipe calls an epoch."""

    def __init__(self, sources: str, images: int) -> None:
        self.sources: list[str] = expand_urls(sources)
        self.images, self.path = images, Path(sources)
        self.hash = hashlib.sha256("\n".join(self.sources).encode()).hexdigest()

    def __len__(self) -> int:
        return self.images


def stream_images(sources: Sequence[str]) -> Iterator[bytes]:
    """The encoded images of tars, one after the other, as webdataset's own reader gives them."""
    for sample in webdataset.WebDataset(list(sources), shardshuffle=False):
        yield next(content for name, content in sample.items() if name in IMAGES)


def stream_batches(
    spec: BatchSpec,
    stream: Stream,
    *,
    rank: int = 0,
    world: int = 1,
    first_step: int = 0,
    workers: int = 0,
) -> Iterator[Batch]:
    """The rank's slots of every step, without end; every source is read by one worker per pass."""
    readers = world * max(workers, 1)
    if len(stream.sources) < readers:
        raise UsageError(
            f"data.train has {len(stream.sources)} sources for {world} ranks x {max(workers, 1)} "
            "data.workers: each needs one of its own"
        )
    slots = _StreamSlots(spec, stream, rank, world, first_step)
    loader = loaded(slots, None, workers)
    own = spec.slots // world
    for count, batch in enumerate(bounded(loader, spec, len(stream))):
        step, slot = divmod(count, own)
        yield dataclasses.replace(batch, step=first_step + step, slot=rank * own + slot)


class _StreamSlots(IterableDataset):
    """One batch after the other of what this worker reads; an error is handed over as a value."""

    def __init__(
        self, spec: BatchSpec, stream: Stream, rank: int, world: int, first_step: int
    ) -> None:
        self.spec, self.stream, self.first_step = spec, stream, first_step
        self.rank, self.world = rank, world
        self.decode = decoder(spec.decoder, spec.crops, spec.values)

    def __iter__(self) -> Iterator[Batch | UserError]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        reader, readers = self.rank * workers + worker, self.world * workers
        # a run that continues must not begin with the same images
        own = (self.spec.seed, self.first_step, reader)
        try:
            yield from self._batches(own, self._images(reader, readers, own))
        except UserError as error:
            yield error

    def _images(self, reader: int, readers: int, own: Sequence[int]) -> Iterator[Image]:
        epoch = 0
        while True:
            sources = list(self.stream.sources)
            keyed(STREAM, self.spec.seed, self.first_step, epoch).shuffle(sources)
            rng, buffer = keyed(STREAM, *own, epoch), []
            for source in sources[reader::readers]:
                for image in images_of(source):
                    buffer.append(image)
                    if len(buffer) >= BUFFER:
                        yield _draw(buffer, rng)
            while buffer:
                yield _draw(buffer, rng)
            epoch += 1

    def _batches(self, own: Sequence[int], images: Iterator[Image]) -> Iterator[Batch]:
        spec, count = self.spec, 0
        samples: list[Sample] = []
        bad: list[Bad] = []
        for source, key, content, label in images:
            try:
                image = self.decode(content)
            except Undecodable as error:
                if spec.on_error == "raise":
                    raise SampleError(source, key, str(error)) from error
                bad.append((source, key, str(error)))
                continue
            rng = keyed(STREAM, *own, count)
            samples.append(prepared(spec, image, rng, position=count, label=label))
            count += 1
            if len(samples) == spec.images_per_slot:
                masks = spec.masks.draw(spec.views * len(samples), keyed(MASKS, *own, count))
                yield collate(samples, masks, step=0, slot=0, bad=bad)
                samples, bad = [], []


def _draw(buffer: list[Image], rng: random.Random) -> Image:
    """Takes a random item out of the buffer."""
    place = int(rng.random() * len(buffer))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer.pop()


def images_of(source: str) -> Iterator[Image]:
    """The images of one tar; UserError names what is wrong with it, and where."""
    try:
        if is_http(source):  # webdataset would start another program
            yield from _grouped(Forward(Incoming(source), source), source)
            return
        with gopen(source) as file:
            yield from _grouped(Forward(file, source), source)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{source} cannot be read: {error}") from error


def _grouped(file: Forward, source: str) -> Iterator[Image]:
    without: list[str] = []
    extensions: Counter[str] = Counter()
    leftovers: list[str] = []
    for key, members in groupby(
        _members(file, source, leftovers), lambda member: split_name(member[0])[0]
    ):
        found, label = None, -1
        for name, content in members:
            extension = split_name(name)[1]
            extensions[extension] += 1
            if extension in IMAGES:
                found = content
            elif extension == CLASS:
                label = _label(content, f"{source}: sample {printable(key)}")
        if found is not None:
            yield source, key, found, label
        else:
            without.append(key)
    if not extensions.keys() & set(IMAGES):
        raise UserError(f"{source}: no image in it{listed(extensions)}")
    if without:
        say(f"{source}: {len(without)} samples without an image, e.g. {without[0]}")
    if leftovers:
        say(f"{source}: {len(leftovers)} leftovers of file managers are passed over")


def _members(file: Forward, source: str, leftovers: list[str]) -> Iterator[tuple[str, bytes]]:
    """The members; those that no data set has are appended to `leftovers` instead."""

    def is_used(name: str) -> bool:
        return split_name(name)[1] in (CLASS, *IMAGES) and not leftover(name)

    for name, content in tar_members(file, source, is_used, most=LARGEST_IMAGE):
        if leftover(name):
            leftovers.append(name)
        else:
            yield name, content


def _label(content: bytes, sample: str) -> int:
    """The number of the class. Only images are used of a stream, so a name says nothing."""
    text = class_of(content, sample)
    return int(text) if is_number(text) else -1
