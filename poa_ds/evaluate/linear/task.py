"""One `poa-ds eval linear`: which images, in how many steps, and the trainings of all its sizes.

RUN/linear/<letters of the task>/ holds what a stopped command goes on from: rows of the sizes that
are done, the sizes of the group that is in training, and its checkpoint.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from poa_ds.checkpoint.deployed import weights_hash
from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.feature_cache import Reader
from poa_ds.evaluate.features import READS, tapped, tokens_read
from poa_ds.evaluate.linear import data as linear_data
from poa_ds.evaluate.linear.classifiers import Unit, bytes_of, units
from poa_ds.evaluate.linear.data import LabelledBatch, RandomCrops
from poa_ds.evaluate.linear.training import Training
from poa_ds.evaluate.score_rows import BEST_ON_VAL, ScoreRow, identity
from poa_ds.model.space import Subnet
from poa_ds.system import dist
from poa_ds.system.files import replace_text
from poa_ds.system.json_text import parse
from poa_ds.system.progress import progress

Rows = Callable[[str], tuple[Tensor, Tensor]]  # size -> (features (n, D), labels (n,))
FREE_SHARE = 0.6  # of the free memory, for classifiers in training
AT_ONCE = 256  # the batch for which rates are named


@dataclass(frozen=True)
class Task:
    """protocol: with every number of the method. held: None where all images are learnt from.

    learn: rows of fixed features, or None for `crops`. memory_bytes: of classifiers on a rank.
    """

    reader: Reader
    sizes: Sequence[Subnet]
    protocol: Mapping[str, Any]
    classes: int
    val: Rows
    held: Rows | None
    learn: Rows | None
    crops: RandomCrops | None
    save_every: int
    memory_bytes: float | None
    metric: str = "top1"

    @cached_property
    def folder(self) -> Path:
        own = {"weights": weights_hash(self.reader.teacher), "sizes": [*map(str, self.sizes)]}
        return self.reader.folder.linear / identity({**self.protocol, **own})

    def run(self, asked: Sequence[int]) -> list[ScoreRow] | None:
        """The rows of all sizes; None where a signal came: the same task goes on from there."""
        done = self.folder / "rows.jsonl"
        while group := self._next(done):
            found = self._trained(group, asked)
            if found is None:
                return None
            if dist.is_main():
                every = [*score_rows.read(done), *found]  # all of a group at once, or none
                replace_text(done, "".join(f"{row.to_json()}\n" for row in every))
                self._group.unlink()
                shutil.rmtree(self._checkpoints, ignore_errors=True)
            dist.barrier()
        return score_rows.read(done) if dist.is_main() else []

    def remove(self) -> None:
        """What only a stopped command needs."""
        shutil.rmtree(self.folder)
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    @property
    def _group(self) -> Path:
        return self.folder / "group.json"

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoint"

    def _next(self, done: Path) -> list[Subnet]:
        """The sizes to train together now: those that were in training, or as memory allows."""
        group: list[Subnet] = []
        if dist.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            finished = {row.size for row in score_rows.read(done)}
            rest = [size for size in self.sizes if str(size) not in finished]
            begun = parse(self._group.read_bytes()) if self._group.is_file() else []
            group = [size for size in rest if str(size) in begun]
            if not group:
                shutil.rmtree(self._checkpoints, ignore_errors=True)
                group = self._cut(rest)
            replace_text(self._group, json.dumps([*map(str, group)]))
        return dist.broadcast_object(group)

    def _cut(self, rest: Sequence[Subnet]) -> list[Subnet]:
        """The first of these whose classifiers fit into memory, one at least."""
        if self.learn is not None:
            return list(rest[:1])
        allowed, group = self.memory_bytes or FREE_SHARE * _free(self.reader.readout.device), []
        for size in rest:
            every = [unit for other in (*group, size) for unit in self.units(other)]
            if group and bytes_of(every, self.classes) / dist.world_size() > allowed:
                break
            group.append(size)
        return group

    def units(self, size: Subnet) -> list[Unit]:
        """All classifiers of a size."""
        model = self.reader.model
        taps = len(tapped(model, size, self.protocol["taps"]))
        return units(str(size), model.feature_width(size), taps, self.protocol["learning_rates"])

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
        first = training.resume(self._checkpoints)
        batches = self._batches(group, range(first, steps))
        if dist.is_main():
            label = f"linear {', '.join(map(str, group))}"
            batches = progress(batches, total=steps, label=label, unit="steps", first=first)
        finished = training.run(
            batches,
            first=first,
            folder=self._checkpoints,
            save_every=self.save_every,
            asked=asked,
        )
        if self.crops is not None:
            self.crops.say_damage()
        if not finished:
            return None
        val = training.right(self.val)
        held = training.right(self.held) if self.held else None
        seconds = (time.monotonic() - start) / len(group)
        return [row for size in group for row in self._rows(size, val, held, seconds)]

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
        widths = {
            str(size): model.feature_width(size) * tokens_read(model, size, taps, protocol["crop"])
            for size in group
        }
        encode = reader.readout.encoder(model.to(reader.readout.device), group, READS[taps])
        device = reader.readout.device
        return self.crops.batches(encode, widths, device, steps=steps, workers=reader.workers)

    def _rows(
        self,
        size: Subnet,
        val: Mapping[str, list[int]],
        held: Mapping[str, list[int]] | None,
        seconds: float,
    ) -> list[ScoreRow]:
        """By the choice on held-out images, and by that on the very validation images."""
        every = [(u, n) for u in self.units(size) for n in range(len(u.rates))]
        images = self.protocol["val"]["images"]
        rows = []
        for chosen_by, counts in (("held_out", held), (BEST_ON_VAL, val)):
            if counts is None:
                continue
            unit, number = max(every, key=lambda one: counts[one[0].name][one[1]])
            share = None if held is None else held[unit.name][number]
            top1 = 100 * val[unit.name][number] / images
            setting = {"kind": unit.kind, "rate": unit.rates[number]}
            if share is not None:
                setting["held_out"] = 100 * share / self.protocol["held_out"]["images"]
            rows.append(
                ScoreRow(
                    kind="linear",
                    step=self.reader.step,
                    size=str(size),
                    metric=self.metric,
                    value=top1,
                    error=results.error(top1, images),
                    set="val",
                    chosen_by=chosen_by,
                    setting=setting,
                    seconds=seconds,
                    protocol=self.protocol,
                    torch=torch.__version__,
                )
            )
        return rows


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
