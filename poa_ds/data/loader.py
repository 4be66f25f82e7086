"""From a shard folder to batches: workers read, decode and crop; what they do depends on positions.

A slot's batch is the same on any number of ranks and workers. A damaged image stops the run
(`raise`) or is replaced by another one that (seed, position) determines (`replace`).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from poa_ds.data.assemble import bounded, prepared
from poa_ds.data.batch import Bad, Batch, Sample, collate
from poa_ds.data.image import decoders
from poa_ds.data.image.decoders import Decode, decoder
from poa_ds.data.image.opening import Undecodable
from poa_ds.data.image.views import center_view
from poa_ds.data.places import Folder, order_of, prefetchers
from poa_ds.data.spec import BatchSpec, OnError, batch_spec
from poa_ds.data.store.index import SampleError
from poa_ds.data.store.order import MASKS, SUBSTITUTE, VIEWS, keyed, slot_positions
from poa_ds.data.stream import Stream, stream_batches
from poa_ds.data.workers import loaded
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError

SUBSTITUTES = 10  # tries for one damaged image before the folder counts as unreadable


def train_batches(
    recipe: Recipe,
    folder: Folder | Stream,
    *,
    rank: int = 0,
    world: int = 1,
    first_step: int = 0,
    workers: int = 0,
) -> Iterator[Batch]:
    """The rank's slots of every step from `first_step` on, in order and without end."""
    batches = stream_batches if isinstance(folder, Stream) else slot_batches
    spec = batch_spec(recipe)
    return batches(spec, folder, rank=rank, world=world, first_step=first_step, workers=workers)


def slot_batches(
    spec: BatchSpec,
    folder: Folder,
    *,
    rank: int = 0,
    world: int = 1,
    first_step: int = 0,
    workers: int = 0,
) -> Iterator[Batch]:
    """The same, from an explicit specification."""
    assert spec.slots % world == 0, f"{spec.slots} slots on {world} ranks"
    requests = _Requests(spec, folder, rank, world, first_step)
    loader = loaded(_Slots(spec, folder), requests, workers)
    return bounded(loader, spec, len(folder))


@dataclass(frozen=True)
class _Request:
    step: int
    slot: int
    rows: np.ndarray  # (B,) samples


class _Requests(Sampler[_Request]):
    """What the rank needs next; runs in the main process, the only one that knows the order."""

    def __init__(
        self, spec: BatchSpec, folder: Folder, rank: int, world: int, first_step: int
    ) -> None:
        self.spec, self.first_step = spec, first_step
        self.order = order_of(folder, spec.seed, spec.block_shards)
        self.prefetchers = prefetchers(folder, self.order, spec.cache_bytes)
        own = spec.slots // world
        self.slots = range(rank * own, (rank + 1) * own)

    def __iter__(self) -> Iterator[_Request]:
        step = self.first_step
        while True:
            for slot in self.slots:
                positions = slot_positions(step, slot, self.spec.images_per_slot, self.spec.slots)
                for prefetcher in self.prefetchers:
                    prefetcher.at(positions.start)
                yield _Request(step, slot, self.order.rows(positions.start, len(positions)))
            step += 1


class _Slots(Dataset[Batch | UserError]):
    """Request -> batch; a fatal UserError is handed over as a value, as workers lose its type."""

    def __init__(self, spec: BatchSpec, folder: Folder) -> None:
        self.spec, self.folder = spec, folder
        self.decode = decoder(spec.decoder, spec.crops, spec.values)

    def __getitem__(self, request: _Request) -> Batch | UserError:
        spec = self.spec
        first = slot_positions(request.step, request.slot, spec.images_per_slot, spec.slots).start
        bad: list[Bad] = []
        try:
            samples = [
                self._sample(first + place, int(row), bad) for place, row in enumerate(request.rows)
            ]
        except UserError as error:
            return error
        masks = spec.masks.draw(
            spec.views * len(samples), keyed(MASKS, spec.seed, request.step, request.slot)
        )
        return collate(samples, masks, step=request.step, slot=request.slot, bad=bad)

    def _sample(self, position: int, row: int, bad: list[Bad]) -> Sample:
        spec = self.spec
        rng = keyed(SUBSTITUTE, spec.seed, position)
        image, row = _usable(self.folder, row, rng, spec.on_error, bad, decode=self.decode)
        rng = keyed(VIEWS, spec.seed, position)
        return prepared(spec, image, rng, position=position, label=self.folder.label(row))


def _usable(
    folder: Folder,
    row: int,
    rng: random.Random,
    on_error: OnError,
    bad: list[Bad],
    *,
    decode: Decode,
) -> tuple[Tensor, int]:
    """(image, its sample number): of `row`, or of a substitute where that is damaged."""
    for _ in range(SUBSTITUTES):
        try:
            return decoded(folder, row, decode), row
        except SampleError as error:
            if on_error == "raise":
                raise
            bad.append((error.shard, error.key, error.cause))
            row, last = (row + 1 + int(rng.random() * (len(folder) - 1))) % len(folder), error
    raise last


def decoded(folder: Folder, row: int, decode: Decode) -> Tensor:
    """The image (C, H, W) of one sample. SampleError: it is damaged."""
    content = folder.read(row)
    try:
        return decode(content)
    except Undecodable as error:
        raise folder.error(row, str(error)) from error


def eval_batches(
    folder: Folder,
    ids: Sequence[int] | np.ndarray,
    *,
    resize: int,
    crop: int,
    batch_size: int,
    workers: int = 0,
    bad: list[Bad] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images (b, C, crop, crop) from 0 to 255, labels (b,) int64) of the samples `ids`.

    They come in this order; the last batch may be smaller. A damaged image raises SampleError;
    with a list `bad` it is replaced, with the label of its substitute, and appended to the list.
    """
    ids = np.asarray(ids, np.int64)
    parts = [ids[first : first + batch_size] for first in range(0, len(ids), batch_size)]
    centers = _Centers(folder, resize, crop, "raise" if bad is None else "replace")
    for found in loaded(centers, parts, workers):
        if isinstance(found, UserError):
            raise found
        images, labels, replaced = found
        if bad is not None:
            bad += replaced
        yield images, labels


class _Centers(Dataset[tuple[Tensor, Tensor, list[Bad]] | UserError]):
    """Sample numbers -> their centre views and labels, and what was replaced."""

    def __init__(self, folder: Folder, resize: int, crop: int, on_error: OnError) -> None:
        self.folder, self.resize, self.crop, self.on_error = folder, resize, crop, on_error
        self.decode = decoders.of(folder.values)

    def __getitem__(self, rows: np.ndarray) -> tuple[Tensor, Tensor, list[Bad]] | UserError:
        images, used, bad = [], [], []
        try:
            for row in rows.tolist():
                rng = keyed(SUBSTITUTE, 0, row)
                image, row = _usable(self.folder, row, rng, self.on_error, bad, decode=self.decode)
                images.append(center_view(image, self.resize, self.crop))
                used.append(row)
        except UserError as error:
            return error
        return torch.stack(images), torch.tensor([self.folder.label(row) for row in used]), bad
