"""The classifiers of some sizes in training: dealt to the ranks, saved, counted.

No classifier is on two ranks, and none is reduced: memory falls with the ranks, and what is learnt
does not depend on their number.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from poa_ds.evaluate.linear.classifiers import Classifiers, Unit, chunks, cosine, dealt
from poa_ds.evaluate.linear.data import LabelledBatch
from poa_ds.system import dist
from poa_ds.system.files import give_name, sync

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
        for done, (features, labels) in enumerate(batches, start=first + 1):
            share = self.scale * cosine(done - 1, self.steps)
            near, wanted = (
                {s: x.to(self.device) for s, x in features.items()},
                labels.to(self.device),
            )
            for classifiers in self.own:
                classifiers.learn(near[classifiers.unit.size], wanted, share)
            stop = dist.any_rank(bool(asked), self.device) and done < self.steps
            if stop or (done % save_every == 0 and done < self.steps):
                self.save(folder, done)
            if stop:
                return False
        return True

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

    def save(self, folder: Path, step: int) -> None:
        """FOLDER/step00000100 with a file per unit, whole or not there; older ones go."""
        target = folder / f"step{step:08d}"
        partial = folder / f".{target.name}.partial"
        if dist.is_main():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        for own in self.own:
            path = partial / f"{own.unit.name}.safetensors"
            save_file({name: x.cpu() for name, x in own.state().items()}, path)
            sync(path)
        dist.barrier()
        if dist.is_main():
            shutil.rmtree(target, ignore_errors=True)
            give_name(partial, target)
            for other in saved(folder).values():
                if other != target:
                    shutil.rmtree(other)
        dist.barrier()

    def resume(self, folder: Path) -> int:
        """The step that was saved, 0 for none; by any number of ranks. A collective."""
        found = saved(folder)
        step = dist.broadcast_object(max(found, default=0))
        for own in self.own if step else ():
            own.load(self._read(found[step] / f"{own.unit.name}.safetensors"))
        dist.barrier()
        return step

    def _read(self, path: Path) -> Mapping[str, Tensor]:
        return load_file(path, device=str(self.device))


def saved(folder: Path) -> dict[int, Path]:
    """Step -> its folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return {int(p.name[4:]): p for p in found if re.fullmatch(r"step\d{8}", p.name)}
