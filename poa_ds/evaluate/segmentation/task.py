"""One `poa-ds eval segmentation`: which images, in how many steps, and the heads of all its sizes.

RUN/segmentation/<letters of the task>/ holds what a stopped command goes on from (groups.py).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poa_ds.data.store.index import SampleError
from poa_ds.evaluate.feature_cache import Reader
from poa_ds.evaluate.groups import Groups, allowed_bytes
from poa_ds.evaluate.knn_protocol import Encoder
from poa_ds.evaluate.score_rows import ScoreRow, identity
from poa_ds.evaluate.segmentation import pairs
from poa_ds.evaluate.segmentation.crops import Draw
from poa_ds.evaluate.segmentation.heads import Heads, Schedule, bytes_of
from poa_ds.evaluate.segmentation.layouts import Masked
from poa_ds.evaluate.segmentation.maps import maps, width
from poa_ds.evaluate.segmentation.pairs import RandomPairs
from poa_ds.evaluate.segmentation.scores import METRICS, errors, miou
from poa_ds.evaluate.segmentation.training import Training
from poa_ds.model.space import Subnet
from poa_ds.system import dist
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.progress import progress

Counts = Mapping[tuple[str, int], Tensor]  # (size, number of a rate) -> (images, 3, K)


@dataclass(frozen=True)
class Task:
    """protocol: with every number of the method. learn, held, measured: rows of train and val.

    places: of a map. floor: mIoU without looking. memory_gb: for heads and maps, on a rank.
    """

    reader: Reader
    sizes: Sequence[Subnet]
    protocol: Mapping[str, Any]
    train: Masked
    val: Masked
    learn: np.ndarray
    held: np.ndarray
    measured: np.ndarray
    places: int
    floor: float
    save_every: int
    memory_gb: float | None

    @cached_property
    def groups(self) -> Groups:
        own = {"weights": self.reader.weights, "sizes": [*map(str, self.sizes)]}
        folder = self.reader.folder.segmentation / identity({**self.protocol, **own})
        return Groups(folder, self.sizes, self._fit)

    def run(self, asked: Sequence[int]) -> list[ScoreRow] | None:
        """The rows of all sizes; None where a signal came: the same task goes on from there."""
        return self.groups.run(partial(self._trained, asked=asked))

    @cached_property
    def fill(self) -> Tensor:
        """The colour beyond the end of an image: the mean one."""
        return torch.tensor([round(255 * x) for x in self.reader.readout.mean], dtype=torch.uint8)

    def _fit(self, group: Sequence[Subnet]) -> bool:
        """Whether heads of these and their maps of a batch fit into memory."""
        protocol, model = self.protocol, self.reader.model
        widths = [width(model, size, protocol["taps"]) for size in group]
        images = -(-protocol["batch"] // dist.world_size())
        rates = len(protocol["learning_rates"])
        heads = sum(bytes_of(channels, protocol["classes"], rates) for channels in widths)
        needed = heads + 4 * images * self.places * sum(widths)
        return needed <= allowed_bytes(self.memory_gb, self.reader.readout.device)

    def _heads(self, size: Subnet) -> Heads:
        return Heads(
            str(size),
            width(self.reader.model, size, self.protocol["taps"]),
            self.protocol["classes"],
            self.protocol["learning_rates"],
            seed=self.protocol["seed"],
            device=self.reader.readout.device,
        )

    def _trained(self, group: Sequence[Subnet], asked: Sequence[int]) -> list[ScoreRow] | None:
        start, protocol, reader = time.monotonic(), self.protocol, self.reader
        steps, folder = protocol["steps"], self.groups.checkpoints
        heads = [self._heads(size) for size in group]
        encode = encoder(reader, group, protocol["taps"])
        schedule = Schedule(
            steps, protocol["warmup_steps"], protocol["decay"], protocol["weight_decay"]
        )
        training = Training(heads, encode, schedule, reader.readout.device)
        first = training.resume(folder)
        draw = Draw(protocol["crop"], self.fill, protocol["cat_max_ratio"], protocol["distort"])
        crops = RandomPairs(self.train, self.learn, draw, protocol["batch"], protocol["seed"])
        batches = crops.batches(range(first, steps), reader.workers)
        if dist.is_main():
            label = f"segmentation {', '.join(map(str, group))}"
            batches = progress(batches, total=steps, label=label, unit="steps", first=first)
        finished = training.run(
            batches, first=first, folder=folder, save_every=self.save_every, asked=asked
        )
        crops.say_damage()
        if not finished:
            return None
        for one in heads:
            if not one.finite():
                raise UserError(
                    f"the heads of {one.name} are not finite: leave it out of --sizes (the other "
                    "sizes are then learnt anew)"
                )
        every = {one.name: range(len(protocol["learning_rates"])) for one in heads}
        held: Counts | None = {}
        if len(self.held):
            held = self._counts(training, self.train, self.held, every, asked)
        if held is None:
            return None
        shares = {key: float(miou(counts.sum(0))) for key, counts in held.items()}
        best = {
            name: [int(np.argmax([shares.get((name, rate), 0.0) for rate in rates]))]
            for name, rates in every.items()
        }
        val = self._counts(training, self.val, self.measured, best, asked)
        if val is None:
            return None
        seconds = (time.monotonic() - start) / len(group)
        return [
            row for key, found in val.items() for row in self._rows(*key, found, shares, seconds)
        ]

    def _counts(
        self,
        training: Training,
        of: Masked,
        rows: np.ndarray,
        chosen: Mapping[str, Sequence[int]],
        asked: Sequence[int],
    ) -> Counts | None:
        """Of these rows of a set, by the chosen rates; None where a signal came. A collective."""
        protocol, reader = self.protocol, self.reader
        own = rows[dist.rank() :: dist.world_size()].tolist()
        images: Iterator = pairs.whole(of, own, protocol["crop"], self.fill, reader.workers)
        if dist.is_main():
            images = progress(images, total=len(own), label=f"{of.place}", unit="images")
        found = training.counts(
            iter(images),
            len(rows),
            chosen,
            crop=protocol["crop"],
            stride=protocol["stride"],
            batch=reader.batch_size,
            asked=asked,
        )
        if found is None:
            return None
        counts, bad = found
        if len(bad) == len(rows):
            raise UserError(f"{of.place}: none of its {len(rows)} images can be read")
        if bad and dist.is_main():
            say(
                f"warning: {len(bad)} damaged images of {of.place} are not measured; the first: "
                f"{SampleError(*bad[0])}"
            )
        return counts

    def _rows(
        self, size: str, rate: int, counts: Tensor, shares: Mapping, seconds: float
    ) -> list[ScoreRow]:
        error = errors(counts, seed=self.protocol["seed"])
        setting = {"rate": self.protocol["learning_rates"][rate], "majority_miou": self.floor}
        if shares:
            setting["held_out"] = shares[size, rate]
        return [
            ScoreRow(
                kind="seg",
                step=self.reader.step,
                size=size,
                metric=name,
                value=float(metric(counts.sum(0))),
                error=error[name],
                set="val",
                chosen_by="held_out" if shares else "",
                setting=setting,
                seconds=seconds,
                protocol=self.protocol,
                torch=torch.__version__,
            )
            for name, metric in METRICS.items()
        ]


def encoder(reader: Reader, sizes: Sequence[Subnet], taps: str) -> Encoder:
    """From uint8 crops (B, 3, S, S) to the maps (B, rows, columns, C) of each size."""
    model = reader.model.to(reader.readout.device)
    return reader.readout.encoder(model, sizes, partial(maps, taps=taps))
