"""Images with their masks as they are learnt from, in random crops, and as they are measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from poa_ds.data.batch import Bad
from poa_ds.data.store.index import SampleError
from poa_ds.data.store.order import VIEWS, Order, keyed
from poa_ds.data.workers import loaded
from poa_ds.evaluate import positions
from poa_ds.evaluate.positions import Requests
from poa_ds.evaluate.segmentation.crops import Draw, padded, random_pair, resized
from poa_ds.evaluate.segmentation.layouts import Masked
from poa_ds.system.errors import UserError

Block = tuple[Tensor, Tensor]  # crops (b, 3, S, S) uint8, classes (b, S, S) int16


@dataclass
class RandomPairs:
    """The images to learn from: `rows` of a set. bad: damaged ones, which others stand for."""

    of: Masked
    rows: np.ndarray
    draw: Draw
    batch: int
    seed: int
    bad: list[Bad] = field(default_factory=list)

    def batches(self, steps: range, workers: int) -> Iterator[list[Block]]:
        """This rank's blocks of the batch of each of these steps."""
        spans = positions.dealt(self.batch).own()
        requests = Requests(Order(len(self.rows), self.seed), self.batch, spans, steps)
        crops = _Crops(self.of, self.rows, self.draw, self.seed)
        found = iter(loaded(crops, requests, workers))
        for _ in steps:
            blocks = []
            for _ in spans:
                images, masks, bad = positions.checked(next(found))
                self.bad += map(tuple, bad)  # workers make lists of them
                blocks.append((images, masks))
            yield blocks

    def say_damage(self) -> None:
        """How many images were damaged, on all ranks. A collective."""
        positions.say_damage(self.bad, self.of.place)


@dataclass(frozen=True)
class _Crops(Dataset[tuple[Tensor, Tensor, list[Bad]] | UserError]):
    """Requests -> crops, their classes, and what was replaced."""

    of: Masked
    rows: np.ndarray
    draw: Draw
    seed: int

    def __getitem__(
        self, request: tuple[int, np.ndarray]
    ) -> tuple[Tensor, Tensor, list[Bad]] | UserError:
        first, places = request
        images, masks, bad = [], [], []
        try:
            for position, place in enumerate(places.tolist(), start=first):
                pair, _, replaced = positions.usable(
                    self.of.pair, self.rows, place, seed=self.seed, position=position
                )
                rng = keyed(VIEWS, self.seed, position)
                image, mask = random_pair(*pair, self.draw, rng)
                images.append(image)
                masks.append(mask)
                bad += replaced
        except UserError as error:  # as a value: workers lose its type
            return error
        return torch.stack(images), torch.stack(masks), bad


@dataclass(frozen=True)
class Whole:
    """An image to measure, its short side a crop, and its mask as it is.

    image (3, H, W) uint8, filled up where a side is shorter; size: without that.
    """

    image: Tensor
    size: tuple[int, int]
    mask: Tensor


def whole(
    of: Masked, rows: Sequence[int], crop: int, fill: Tensor, workers: int
) -> Iterator[Whole | Bad]:
    """These images in their order; what is wrong where one is damaged. UserError: another fault."""
    for found in loaded(_Whole(of, crop, fill), rows, workers):
        yield positions.checked(found)


@dataclass(frozen=True)
class _Whole(Dataset[Whole | Bad | UserError]):
    of: Masked
    crop: int
    fill: Tensor

    def __getitem__(self, row: int) -> Whole | Bad | UserError:
        try:
            image, mask = self.of.pair(row)
        except SampleError as error:
            return error.shard, error.key, error.cause
        except UserError as error:
            return error
        small = resized(image, self.crop)
        return Whole(padded(small, self.crop, self.fill), tuple(small.shape[-2:]), mask)
