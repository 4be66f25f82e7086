"""Some samples of a shard folder as a folder of their own: those that labels are learnt from."""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np

from poa_ds.data.store.index import SampleError, ShardFolder


class Selection:
    """Samples 0 .. len - 1 are those of `folder` with these numbers."""

    def __init__(self, folder: ShardFolder, numbers: np.ndarray) -> None:
        assert len(numbers), "no samples"
        self.folder, self.numbers = folder, np.asarray(numbers, np.int64)

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def classes(self) -> tuple[str, ...]:
        return self.folder.classes

    @cached_property
    def hash(self) -> str:
        """Of the whole folder and of what is taken."""
        numbers = self.numbers.astype("<i8").tobytes()
        return hashlib.sha256(self.folder.hash.encode() + numbers).hexdigest()

    def __len__(self) -> int:
        return len(self.numbers)

    def label(self, sample: int) -> int:
        return self.folder.label(int(self.numbers[sample]))

    def shard(self, sample: int) -> str:
        return self.folder.shard(int(self.numbers[sample]))

    def key(self, sample: int) -> str:
        return self.folder.key(int(self.numbers[sample]))

    def read(self, sample: int) -> bytes:
        return self.folder.read(int(self.numbers[sample]))

    def error(self, sample: int, cause: str) -> SampleError:
        return self.folder.error(int(self.numbers[sample]), cause)
