"""Batches of images to learn from that are the same on any number of ranks.

Which images, by (seed, position) alone; in blocks of a fixed size, which are dealt to the ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch.utils.data import Sampler

from poa_ds.data.batch import Bad
from poa_ds.data.loader import SUBSTITUTES
from poa_ds.data.store.index import SampleError
from poa_ds.data.store.order import SUBSTITUTE, Order, keyed
from poa_ds.evaluate.neighbours import Deal
from poa_ds.system import dist
from poa_ds.system.console import say
from poa_ds.system.errors import UserError

BLOCKS = 16  # of a batch: what can be dealt to ranks
Item = TypeVar("Item")


def dealt(batch: int) -> Deal:
    """The images of a batch in blocks."""
    return Deal(batch, -(-batch // BLOCKS))


@dataclass(frozen=True)
class Requests(Sampler[tuple[int, np.ndarray]]):
    """(first position, places among the images to learn from) of blocks, step by step."""

    order: Order
    batch: int
    spans: Sequence[range]
    steps: range

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        for step in self.steps:
            for span in self.spans:
                first = step * self.batch + span.start
                yield first, self.order.rows(first, len(span))


def usable(
    read: Callable[[int], Item], rows: np.ndarray, place: int, *, seed: int, position: int
) -> tuple[Item, int, list[Bad]]:
    """(what `read` makes of one of the rows, which one, the damaged ones that it stands for).

    place: of the row that was asked for. SampleError: so many are damaged.
    """
    rng, bad = keyed(SUBSTITUTE, seed, position), []
    for _ in range(SUBSTITUTES):
        row = int(rows[place])
        try:
            return read(row), row, bad
        except SampleError as error:
            bad.append((error.shard, error.key, error.cause))
            place, last = (place + 1 + int(rng.random() * (len(rows) - 1))) % len(rows), error
    raise last


def checked(found: Item | UserError) -> Item:
    """What a worker has found; it hands an error over as a value, as it would lose its type."""
    if isinstance(found, UserError):
        raise found
    return found


def say_damage(bad: Iterable[Bad], place: object) -> None:
    """How many images of that place were damaged, on all ranks. A collective."""
    every = {entry for rank in dist.all_gather_objects([*bad]) for entry in rank}
    if every and dist.is_main():
        shard, key, cause = sorted(every)[0]
        say(
            f"warning: others stand for {len(every)} damaged images of {place}; the "
            f"first: {SampleError(shard, key, cause)}"
        )
