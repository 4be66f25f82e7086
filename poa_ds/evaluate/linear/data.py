"""Batches of features to learn from: of random crops, seen anew in every step, or of fixed rows.

A batch is the same on any number of ranks: which images, by (seed, position) alone, and each one's
crop; its features are computed in blocks of a fixed size, dealt to the ranks and gathered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from poa_ds.data.batch import Bad
from poa_ds.data.image import decoders
from poa_ds.data.image.views import random_crop
from poa_ds.data.loader import decoded
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.order import VIEWS, Order, keyed
from poa_ds.data.workers import loaded
from poa_ds.evaluate import positions
from poa_ds.evaluate.knn_protocol import Encoder
from poa_ds.evaluate.neighbours import Deal
from poa_ds.evaluate.positions import Requests
from poa_ds.system import dist
from poa_ds.system.errors import UserError

SCALE, FLIP = (0.08, 1.0), 0.5  # of a random crop, as in DINOv2's evaluation
LabelledBatch = tuple[Mapping[str, Tensor], Tensor]  # features (B, D) of each size, labels (B,)


def of_rows(
    features: Mapping[str, Tensor], labels: Tensor, *, batch: int, seed: int, steps: range
) -> Iterator[LabelledBatch]:
    """The batches of these steps, of fixed rows (n, D)."""
    order = Order(len(labels), seed)
    for step in steps:
        rows = torch.from_numpy(order.rows(step * batch, batch))
        yield {size: x[rows] for size, x in features.items()}, labels[rows]


@dataclass
class RandomCrops:
    """The images to learn from: `rows` of a folder. bad: damaged ones, which others stand for."""

    folder: ShardFolder
    rows: np.ndarray
    crop: int
    batch: int
    seed: int
    bad: list[Bad] = field(default_factory=list)

    @torch.inference_mode()
    def batches(
        self,
        encode: Encoder,
        widths: Mapping[str, int],
        device: torch.device,
        *,
        steps: range,
        workers: int,
    ) -> Iterator[LabelledBatch]:
        """The batches of these steps, as `encode` reads them. A collective in every step.

        widths: size -> columns of its features, in the order of `encode`.
        """
        deal = positions.dealt(self.batch)
        spans, places = deal.own(), _places(deal).to(device)
        requests = Requests(Order(len(self.rows), self.seed), self.batch, spans, steps)
        crops = _Crops(self.folder, self.rows, self.crop, self.seed)
        found = iter(loaded(crops, requests, workers))
        for _ in steps:
            labels = [torch.zeros(0, dtype=torch.int64, device=device)]
            features = [[torch.zeros(0, width, device=device)] for width in widths.values()]
            for _ in spans:
                images, own, bad = positions.checked(next(found))
                for column, x in zip(features, encode(images.to(device)), strict=True):
                    column.append(x.float())
                labels.append(own.to(device))
                self.bad += map(tuple, bad)  # workers make lists of them
            gathered = [_gathered(torch.cat(column), deal, places) for column in features]
            yield (
                dict(zip(widths, gathered, strict=True)),
                _gathered(torch.cat(labels), deal, places),
            )

    def say_damage(self) -> None:
        """How many images were damaged, on all ranks. A collective."""
        positions.say_damage(self.bad, self.folder.path)


def _places(deal: Deal) -> Tensor:
    """(rows,) where each row of the set is among the padded rows of all ranks."""
    ranks, padded = dist.world_size(), deal.rounds * deal.block
    rows = torch.arange(deal.rows)
    turn, rank = rows // deal.block // ranks, rows // deal.block % ranks
    return rank * padded + turn * deal.block + rows % deal.block


def _gathered(own: Tensor, deal: Deal, places: Tensor) -> Tensor:
    """(rows, ...) in their order, of the rows that the ranks have."""
    padded = own.new_zeros(deal.rounds * deal.block, *own.shape[1:])
    padded[: len(own)] = own
    return dist.all_rows(padded)[places]


@dataclass(frozen=True)
class _Crops(Dataset[tuple[Tensor, Tensor, list[Bad]] | UserError]):
    """Requests -> random crops (b, C, S, S), labels, and what was replaced."""

    folder: ShardFolder
    rows: np.ndarray
    crop: int
    seed: int

    def __getitem__(
        self, request: tuple[int, np.ndarray]
    ) -> tuple[Tensor, Tensor, list[Bad]] | UserError:
        first, places = request
        crops, labels, bad = [], [], []
        read = partial(decoded, self.folder, decode=decoders.of(self.folder.values))
        try:
            for position, place in enumerate(places.tolist(), start=first):
                image, row, replaced = positions.usable(
                    read, self.rows, place, seed=self.seed, position=position
                )
                rng = keyed(VIEWS, self.seed, position)
                crops.append(random_crop(image, self.crop, SCALE, FLIP, rng))
                labels.append(self.folder.label(row))
                bad += replaced
        except UserError as error:  # as a value: workers lose its type
            return error
        return torch.stack(crops), torch.tensor(labels), bad
