"""One `poa-ds eval linear`: which images, in how many steps, and the trainings of all its sizes.

RUN/linear/<letters of the task>/ holds what a stopped command goes on from (groups.py).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from poa_ds.evaluate.feature_cache import Reader
from poa_ds.evaluate.features import READS, kinds, numbers_read
from poa_ds.evaluate.groups import Groups, allowed_bytes
from poa_ds.evaluate.linear import data as linear_data
from poa_ds.evaluate.linear.classifiers import Unit, bytes_of, units
from poa_ds.evaluate.linear.data import LabelledBatch, RandomCrops
from poa_ds.evaluate.linear.training import Training
from poa_ds.evaluate.measured import Measured, Rows
from poa_ds.evaluate.score_rows import BEST_ON_VAL, ScoreRow, identity
from poa_ds.model.space import Subnet
from poa_ds.system import dist
from poa_ds.system.progress import progress

AT_ONCE = 256  # the batch for which rates are named


@dataclass(frozen=True)
class Task:
    """protocol: with every number of the method. held: None where all images are learnt from.

    learn: rows of fixed features, or None for `crops`. memory_gb: for classifiers, on a rank.
    amount: of labels, behind the names of metrics. tests: what is measured besides.
    """

    reader: Reader
    sizes: Sequence[Subnet]
    protocol: Mapping[str, Any]
    classes: int
    val: Measured
    held: Rows | None
    learn: Rows | None
    crops: RandomCrops | None
    save_every: int
    memory_gb: float | None
    amount: str = ""
    tests: Sequence[Measured] = ()

    @cached_property
    def folder(self) -> Path:
        own = {"weights": self.reader.weights, "sizes": [*map(str, self.sizes)]}
        own |= {"tests": {of.name: of.record for of in self.tests}}
        return self.reader.folder.linear / identity({**self.protocol, **own})

    @cached_property
    def groups(self) -> Groups:
        return Groups(self.folder, self.sizes, self._fit)

    def run(self, asked: Sequence[int]) -> list[ScoreRow] | None:
        """The rows of all sizes; None where a signal came: the same task goes on from there."""
        return self.groups.run(partial(self._trained, asked=asked))

    def _fit(self, group: Sequence[Subnet]) -> bool:
        """Whether the classifiers of these fit into memory."""
        if self.learn is not None:
            return False  # features that lie there are read a size at a time
        every = [unit for size in group for unit in self.units(size)]
        allowed = allowed_bytes(self.memory_gb, self.reader.readout.device)
        return bytes_of(every, self.classes) / dist.world_size() <= allowed

    def units(self, size: Subnet) -> list[Unit]:
        """All classifiers of a size."""
        found = kinds(self.reader.model, size, self.protocol["taps"])
        return units(str(size), found, self.protocol["learning_rates"])

    def _trained(self, group: Sequence[Subnet], asked: Sequence[int]) -> list[ScoreRow] | None:
        start, steps, batch = time.monotonic(), self.protocol["steps"], self.protocol["batch"]
        training = Training(
            [unit for size in group for unit in self.units(size)],
            self.classes,
            steps=steps,
            scale=batch / AT_ONCE,
            seed=self.protocol["seed"],
            device=self.reader.readout.device,
        )
        first = training.resume(self.groups.checkpoints)
        batches = self._batches(group, range(first, steps))
        if dist.is_main():
            label = f"linear {', '.join(map(str, group))}"
            batches = progress(batches, total=steps, label=label, unit="steps", first=first)
        finished = training.run(
            batches,
            first=first,
            folder=self.groups.checkpoints,
            save_every=self.save_every,
            asked=asked,
        )
        if self.crops is not None:
            self.crops.say_damage()
        if not finished:
            return None
        val = training.right(self.val.rows)
        held = training.right(self.held) if self.held else None
        rows = []
        for chosen_by, counts in (("held_out", held), (BEST_ON_VAL, val)):
            if counts is not None:
                chosen = {str(size): self._chosen(size, counts) for size in group}
                found = [(of, training.first(chosen, of)) for of in (self.val, *self.tests)]
                seconds = (time.monotonic() - start) / len(group)
                for size in group:
                    setting = self._setting(*chosen[str(size)], held)
                    setting["of_kinds"] = self._of_kinds(size, counts, val)
                    rows += self._rows(str(size), found, chosen_by, setting, seconds)
        return rows

    def _batches(self, group: Sequence[Subnet], steps: range) -> Iterator[LabelledBatch]:
        protocol, reader = self.protocol, self.reader
        if self.learn is not None:
            [size] = map(str, group)
            x, labels = self.learn(size)
            return linear_data.of_rows(
                {size: x.float()},
                labels,
                batch=protocol["batch"],
                seed=protocol["seed"],
                steps=steps,
            )
        model, taps = reader.model, protocol["taps"]
        crop = protocol["crop"]
        widths = {str(size): numbers_read(model, size, taps, crop, crop) for size in group}
        encode = reader.readout.encoder(model.to(reader.readout.device), group, READS[taps])
        device = reader.readout.device
        return self.crops.batches(encode, widths, device, steps=steps, workers=reader.workers)

    def _chosen(
        self, size: Subnet, counts: Mapping[str, list[int]], kind: str | None = None
    ) -> tuple[Unit, int]:
        """The best classifier of a size, of one kind of features or any: its unit, and the number
        of its rate.
        """
        units = [u for u in self.units(size) if kind in (None, u.kind)]
        every = [(u, n) for u in units for n in range(len(u.rates))]
        return max(every, key=lambda one: counts[one[0].name][one[1]])

    def _of_kinds(
        self, size: Subnet, counts: Mapping[str, list[int]], val: Mapping[str, list[int]]
    ) -> dict[str, float]:
        """Kind of features -> top-1 in percent on the validation images of its best classifier."""
        images = len(self.val.rows(str(size))[1])
        each = dict.fromkeys(unit.kind for unit in self.units(size))
        best = [self._chosen(size, counts, kind) for kind in each]
        return {unit.kind: 100 * val[unit.name][number] / images for unit, number in best}

    def _setting(
        self, unit: Unit, number: int, held: Mapping[str, list[int]] | None
    ) -> dict[str, Any]:
        setting = {"kind": unit.kind, "rate": unit.rates[number]}
        if held is not None:
            share = 100 * held[unit.name][number]
            setting["held_out"] = share / self.protocol["held_out"]["images"]
        return setting

    def _rows(
        self,
        size: str,
        found: Sequence[tuple[Measured, Mapping[str, Tensor]]],
        chosen_by: str,
        setting: Mapping[str, Any],
        seconds: float,
    ) -> list[ScoreRow]:
        """Of one size by one choice, on every set: a row for each metric."""
        about = {"step": self.reader.step, "size": size, "chosen_by": chosen_by}
        about |= {"setting": setting, "seconds": seconds}
        return [
            row
            for of, first in found
            for row in of.score_rows(
                "linear",
                of.accuracies(size, first[size], self.classes),
                self.protocol,
                amount=self.amount + self.reader.floor,
                **about,
            )
        ]
