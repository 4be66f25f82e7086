"""Several shard folders as one, each with a weight: how often its images are read.

Within every LAP positions each folder has the same number of them, in an order that the seed
determines: so the place in each folder is a pure function of the position, and nothing is saved.
"""

import bisect
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poa_ds.data.store.index import SampleError, ShardFolder
from poa_ds.data.store.order import Order
from poa_ds.system.errors import UsageError

LAP = 10_000  # positions: weights are kept to one in so many
MIXING = 1 << 62  # second word of the key, plus the lap; epochs of folders take 0, 1, 2, ...


class Mixture:
    """Samples of all folders by number; labels are those of the folders, one after the other."""

    def __init__(self, folders: Sequence[ShardFolder], weights: Sequence[float]) -> None:
        self.folders = list(folders)
        self.shares = shares(weights)
        for folder, share in zip(folders, self.shares, strict=True):
            if not share:
                raise UsageError(f"data.mix: {folder.path} has less than 1 / {LAP} of the weights")
        self.starts = [0, *np.cumsum([len(folder) for folder in folders]).tolist()]
        self.classes = tuple(name for folder in folders for name in folder.classes)
        named = [[folder.hash for folder in folders], self.shares]
        self.hash = hashlib.sha256(json.dumps(named).encode()).hexdigest()
        self.values = folders[0].values
        self.path = Path(" + ".join(str(folder.path) for folder in folders))

    def __len__(self) -> int:
        return self.starts[-1]

    def label(self, sample: int) -> int:
        """The class of one sample among those of all folders, -1 for none."""
        folder, inside = self._find(sample)
        label = folder.label(inside)
        before = self.folders[: self.folders.index(folder)]
        return label if label < 0 else label + sum(len(part.classes) for part in before)

    def read(self, sample: int) -> bytes:
        """The encoded image."""
        folder, inside = self._find(sample)
        return folder.read(inside)

    def error(self, sample: int, cause: str) -> SampleError:
        """The error that names a sample."""
        folder, inside = self._find(sample)
        return folder.error(inside, cause)

    def _find(self, sample: int) -> tuple[ShardFolder, int]:
        assert 0 <= sample < len(self), f"sample {sample} of {len(self)}"
        number = bisect.bisect_right(self.starts, sample) - 1
        return self.folders[number], sample - self.starts[number]


def shares(weights: Sequence[float]) -> list[int]:
    """How many of LAP positions each weight has; what rounding leaves goes to the largest rests."""
    exact = np.array(weights, float) / sum(weights) * LAP
    whole = np.floor(exact).astype(int)
    rest = np.argsort(whole - exact, kind="stable")[: LAP - int(whole.sum())]
    whole[rest] += 1
    return whole.tolist()


class MixtureOrder:
    """Position -> sample of a mixture; every folder in its own order, epoch after epoch."""

    def __init__(
        self, orders: Sequence[Order], starts: Sequence[int], shares: Sequence[int], seed: int
    ) -> None:
        self.orders, self.starts, self.shares, self.seed = orders, starts, shares, seed
        self._laps: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def rows(self, first: int, count: int) -> np.ndarray:
        """(count,) int64: the samples at positions first .. first + count - 1."""
        return np.array([self.row(first + place) for place in range(count)], np.int64)

    def row(self, position: int) -> int:
        """The sample at a position."""
        lap, place = divmod(position, LAP)
        folders, before = self._lap(lap)
        folder = int(folders[place])
        inside = lap * self.shares[folder] + int(before[place])
        return self.starts[folder] + self.orders[folder].row(inside)

    def next_in(self, folder: int, position: int) -> int:
        """The folder's own position that is the first to be read from `position` on."""
        lap, place = divmod(position, LAP)
        folders, _ = self._lap(lap)
        return lap * self.shares[folder] + int(np.count_nonzero(folders[:place] == folder))

    def _lap(self, lap: int) -> tuple[np.ndarray, np.ndarray]:
        """(LAP,) the folder of each place, and how often it was there before in this lap."""
        if lap not in self._laps:
            words = np.random.Philox(key=[self.seed, MIXING + lap]).random_raw(LAP)
            folders = np.repeat(np.arange(len(self.shares)), self.shares)
            folders = folders[np.argsort(words, kind="stable")]
            before = np.empty(LAP, np.int64)
            for number, share in enumerate(self.shares):
                before[folders == number] = np.arange(share)
            while len(self._laps) > 1:
                del self._laps[min(self._laps)]
            self._laps[lap] = folders, before
        return self._laps[lap]
