"""Which sample when: a pure function of (seed, position).

Positions count the images of the whole run over all ranks. Resuming, another number of ranks or of
workers read the same images at the same positions, and there is nothing to save.
"""

import random
from collections.abc import Sequence

import numpy as np

# purposes of random numbers: their streams never meet
MASKS, VIEWS, SUBSTITUTE, DROP_PATH, STREAM, MIXED = range(8, 14)


def keyed(purpose: int, seed: int, *counters: int) -> random.Random:
    """A generator of its own for every (purpose, seed, counters).

    Python seeds from integers of any length. All purposes have the same number of bits, so that
    no two keys are the same integer.
    """
    key = purpose
    for value in (seed, *counters):
        assert 0 <= value < 1 << 64, f"{value} is not an unsigned 64-bit number"
        key = key << 64 | value
    return random.Random(key)


def slot_positions(step: int, slot: int, images_per_slot: int, slots: int) -> range:
    """The positions that one slot of one step reads."""
    assert 0 <= slot < slots, f"slot {slot} of {slots}"
    first = (step * slots + slot) * images_per_slot
    return range(first, first + images_per_slot)


class Order:
    """Position -> sample: in every epoch each of the n samples once, epochs run into each other."""

    def __init__(self, n: int, seed: int) -> None:
        assert n > 0, "no samples"
        self.n, self.seed = n, seed
        self._permutations: dict[int, np.ndarray] = {}

    def row(self, position: int) -> int:
        """The sample at a position."""
        epoch, place = divmod(position, self.n)
        return int(self._permutation(epoch)[place])

    def rows(self, first: int, count: int) -> np.ndarray:
        """(count,) int64: the samples at positions first .. first + count - 1."""
        parts, end = [], first + count
        while first < end:
            epoch, place = divmod(first, self.n)
            take = min(end - first, self.n - place)
            parts.append(self._permutation(epoch)[place : place + take])
            first += take
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def _permutation(self, epoch: int) -> np.ndarray:
        """Kept for two epochs, as a batch may lie in both.

        Sorted raw words of Philox: NumPy promises those for all versions, its shuffles it does not.
        """
        if epoch not in self._permutations:
            while len(self._permutations) > 1:
                del self._permutations[min(self._permutations)]
            kind = np.int32 if self.n < 1 << 31 else np.int64
            self._permutations[epoch] = self._permuted(epoch).astype(kind)
        return self._permutations[epoch]

    def _permuted(self, epoch: int) -> np.ndarray:
        words = np.random.Philox(key=[self.seed, epoch]).random_raw(self.n)
        return np.argsort(words, kind="stable")


class BlockOrder(Order):
    """The same for shards that are fetched: whole shards in random order, `block` at a time.

    Samples are mixed within the shards of a block, so that no more than two blocks are read at
    once. starts: the first sample of each shard, and the number of samples.
    """

    def __init__(self, starts: Sequence[int], seed: int, block: int) -> None:
        super().__init__(starts[-1], seed)
        assert block > 0, "blocks of no shard"
        self.sizes, self.block = np.diff(starts), block

    def shards(self, epoch: int) -> np.ndarray:
        """(shards,) their order in an epoch; each `block` of them are one block."""
        words = np.random.Philox(key=[self.seed, epoch]).random_raw(len(self.sizes))
        return np.argsort(words, kind="stable")

    def place(self, position: int) -> tuple[int, int]:
        """(epoch, block) of a position."""
        epoch, sample = divmod(position, self.n)
        ends = np.cumsum(self.sizes[self.shards(epoch)])[self.block - 1 :: self.block]
        return epoch, int(np.searchsorted(ends, sample, side="right"))

    def block_shards(self, epoch: int, block: int) -> list[int]:
        """The shards of a block; blocks behind the last one are those of the next epoch."""
        blocks = -(-len(self.sizes) // self.block)
        epoch, block = epoch + block // blocks, block % blocks
        return self.shards(epoch)[block * self.block : (block + 1) * self.block].tolist()

    def _permuted(self, epoch: int) -> np.ndarray:
        count = len(self.sizes)
        words = np.random.Philox(key=[self.seed, epoch]).random_raw(count + self.n)[count:]
        block_of_shard = np.empty(count, np.int64)
        block_of_shard[self.shards(epoch)] = np.arange(count) // self.block
        return np.lexsort((words, np.repeat(block_of_shard, self.sizes)))
