"""The classifiers of some sizes in training: dealt to the ranks, saved, counted.

No classifier is on two ranks, and none is reduced: memory falls with the ranks, and what is learnt
does not depend on their number.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from poa_ds.evaluate import checkpoints
from poa_ds.evaluate.accuracies import best_first
from poa_ds.evaluate.linear.classifiers import Classifiers, Unit, chunks, cosine, dealt
from poa_ds.evaluate.linear.data import LabelledBatch
from poa_ds.evaluate.measured import Measured
from poa_ds.system import dist

AT_A_TIME = 4096  # rows that are classified


class Training:
    """scale: of all rates, as they are for batches of 256."""

    def __init__(
        self,
        every: Sequence[Unit],
        classes: int,
        *,
        steps: int,
        scale: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self.every, self.steps, self.scale, self.device = every, steps, scale, device
        own = dealt(every, dist.world_size())[dist.rank()]
        self.own = [Classifiers(unit, classes, seed=seed, device=device) for unit in own]

    @torch.no_grad()
    def run(
        self,
        batches: Iterator[LabelledBatch],
        *,
        first: int,
        folder: Path,
        save_every: int,
        asked: Sequence[int],
    ) -> bool:
        """Learn from these batches, from step `first` on; False where a signal came: it is saved.

        A collective. Saves to `folder` every so many steps.
        """

        def one(step: int, batch: LabelledBatch) -> None:
            features, labels = batch
            share = self.scale * cosine(step, self.steps)
            near = {size: x.to(self.device) for size, x in features.items()}
            wanted = labels.to(self.device)
            for classifiers in self.own:
                classifiers.learn(near[classifiers.unit.size], wanted, share)

        return checkpoints.learn(
            batches,
            one,
            partial(self.save, folder),
            steps=range(first, self.steps),
            save_every=save_every,
            asked=asked,
            device=self.device,
        )

    @torch.no_grad()
    def right(self, rows: Callable[[str], tuple[Tensor, Tensor]]) -> dict[str, list[int]]:
        """Unit -> how many rows each of its rates puts into their class. A collective.

        rows: size -> (features (n, D), labels (n,)).
        """
        numbers = {unit.name: number for number, unit in enumerate(self.every)}
        most = max(len(unit.rates) for unit in self.every)
        counts = torch.zeros(len(self.every), most, dtype=torch.int64, device=self.device)
        for size in dict.fromkeys(classifiers.unit.size for classifiers in self.own):
            x, labels = rows(size)
            for part in chunks(len(x), AT_A_TIME):
                some, wanted = x[part].float().to(self.device), labels[part].to(self.device)
                for own in (c for c in self.own if c.unit.size == size):
                    counts[numbers[own.unit.name], : len(own.rates)] += own.right(some, wanted)
        table = dist.on_host(dist.all_sum(counts))
        return {u.name: row[: len(u.rates)] for u, row in zip(self.every, table, strict=True)}

    @torch.no_grad()
    def first(
        self, chosen: Mapping[str, tuple[Unit, int]], measured: Measured
    ) -> dict[str, Tensor]:
        """Size -> `best_first` of each image (n, 5), on every rank. A collective.

        chosen: size -> (unit, number of its rate).
        """
        found = {}
        for own in self.own:
            unit, number = chosen[own.unit.size]
            if own.unit != unit:
                continue
            x, _ = measured.rows(unit.size)
            parts = (x[part].float().to(self.device) for part in chunks(len(x), AT_A_TIME))
            scores = (own.scores(part)[:, number] for part in parts)
            found[unit.size] = torch.cat([best_first(s, measured.among).cpu() for s in scores])
        return {size: x for part in dist.all_gather_objects(found) for size, x in part.items()}

    def save(self, folder: Path, step: int) -> None:
        """A file per unit. A collective."""
        checkpoints.save(folder, step, {own.unit.name: own.state() for own in self.own})

    def resume(self, folder: Path) -> int:
        """The step that was saved, 0 for none; by any number of ranks. A collective."""
        load = {own.unit.name: own.load for own in self.own}
        return checkpoints.resume(folder, self.device, load)
