"""What all masks of a set hold, looked at before anything is learnt: mistakes end it there."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from poa_ds.data.batch import Bad
from poa_ds.data.image.opening import Undecodable, opened
from poa_ds.data.store.index import SampleError
from poa_ds.data.workers import loaded
from poa_ds.evaluate.segmentation.layouts import Masked
from poa_ds.evaluate.segmentation.masks import MOST
from poa_ds.system import dist
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.progress import progress

Look = tuple[dict[int, int], Bad | None]  # pixels of each number of the mask; its damage


@dataclass(frozen=True)
class Survey:
    """rows: images that can be used. pixels (classes,): of each class, in all of them."""

    rows: np.ndarray
    pixels: Tensor

    @property
    def classes(self) -> int:
        return len(self.pixels)


def survey(of: Masked, workers: int) -> Survey:
    """Read all masks, each rank some. UserError: one is wrong. A collective."""
    own = range(dist.rank(), len(of), dist.world_size())
    found = loaded(_Looks(of), own, workers)
    if dist.is_main():
        found = progress(found, total=len(own), label=f"masks of {of.place}", unit="masks")
    looks: dict[int, Look | UserError] = dict(zip(own, found, strict=True))
    for other in dist.all_gather_objects(looks):
        looks |= other
    for row in sorted(looks):
        if isinstance(looks[row], UserError):
            raise looks[row]
    good = [row for row in sorted(looks) if looks[row][1] is None]
    _say_damage(of, [bad for _, bad in looks.values() if bad])
    total: Counter[int] = Counter()
    for row in good:
        total.update(looks[row][0])
    return Survey(np.array(good, np.int64), _pixels(of, total))


def _pixels(of: Masked, total: Counter[int]) -> Tensor:
    """(classes,). UserError: nothing can be learnt or measured."""
    numbers = {number - of.first: count for number, count in total.items() if number != of.ignore}
    if not numbers:
        raise UserError(f"{of.place}: no pixel of its masks has a class ({of.ignore} is ignored)")
    classes = of.classes or max(numbers) + 1
    if classes > MOST:
        raise UserError(
            f"{of.place}: a mask has the number {max(numbers)}: there may be {MOST} classes"
        )
    if classes < 2:
        raise UserError(f"{of.place} has one class: there is nothing to separate")
    pixels = torch.zeros(classes, dtype=torch.int64)
    for number, count in numbers.items():
        pixels[number] = count
    return pixels


def _say_damage(of: Masked, bad: list[Bad]) -> None:
    if bad and dist.is_main():
        say(
            f"warning: {len(bad)} damaged images or masks of {of.place} are left out; the first: "
            f"{SampleError(*sorted(bad)[0])}"
        )


@dataclass(frozen=True)
class _Looks(Dataset[Look | UserError]):
    of: Masked

    def __getitem__(self, row: int) -> Look | UserError:
        of = self.of
        try:
            numbers = of.numbers(row)
            try:
                with opened(of.images.read(row)) as image:
                    size = image.size[::-1]
            except (Undecodable, OSError) as error:
                raise SampleError(of.place, of.images.key(row), str(error)) from error
            of.check_size(row, numbers.shape, size)
            values, counts = np.unique(numbers, return_counts=True)
            found = dict(zip(values.tolist(), counts.tolist(), strict=True))
            self._check(row, found)
        except SampleError as error:
            return {}, (error.shard, error.key, error.cause)
        except UserError as error:  # as a value: workers lose its type
            return error
        return found, None

    def _check(self, row: int, found: dict[int, int]) -> None:
        """UserError: a number that is no class."""
        of = self.of
        last = float("inf") if of.classes is None else of.first + of.classes - 1
        for number, count in found.items():
            if number != of.ignore and not of.first <= number <= last:
                raise UserError(
                    f"{of.masks.root / of.masks.names[row]}: {count:,} pixels of {number}, which is"
                    f" no class ({of.first} to {last}, {of.ignore} is ignored)"
                )
