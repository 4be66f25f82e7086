"""Shard folders: plain WebDataset tars with an index beside them, read by offset.

One folder holds one split: dataset.json, index.npy, shard-000000.tar, ... Any WebDataset tool reads
the tars; the index (20 bytes per sample) allows reading any sample at once and finding any damage.
"""

import bisect
import functools
import hashlib
import os
import resource
import tarfile
import tokenize
import zlib
from pathlib import Path
from typing import Any, Self

import numpy as np

from poa_ds.data.image.values import Values
from poa_ds.data.store.manifest import MANIFEST, Manifest
from poa_ds.data.store.tarwalk import BLOCK, ROW
from poa_ds.system.errors import UserError
from poa_ds.system.printable import printable
from poa_ds.system.regular import check_regular

INDEX = "index.npy"
# what numpy raises on a header that it did not write
STRANGE = (
    *(ValueError, OSError, TypeError, SyntaxError, ArithmeticError),
    *(tokenize.TokenError, RecursionError, MemoryError),
)
LISTED = 5  # problems that one message names before it says "and n more"


class SampleError(UserError):
    """One sample cannot be used: its shard, its key and the cause."""

    def __init__(self, shard: str, key: str, cause: str) -> None:
        super().__init__(f"{printable(shard)}, sample {printable(key)}: {cause}")
        self.shard, self.key, self.cause = shard, key, cause

    def __reduce__(self) -> tuple:
        return type(self), (self.shard, self.key, self.cause)


class ShardFolder:
    """One split of a data set: samples by number, with every damage named."""

    def __init__(self, path: Path, manifest: Manifest, index: np.ndarray) -> None:
        self.path, self.manifest, self.index = path, manifest, index
        self.classes, self.hash = manifest.classes, manifest.index_sha256
        # the number of the first sample of each shard, and the number of samples as the last entry
        self.starts = [0, *np.cumsum([shard.samples for shard in manifest.shards]).tolist()]
        self.values: Values | None = None  # what its numbers are; None: ordinary images
        self._descriptors: dict[int, int] = {}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The folder at `path`; UserError names every missing, cut or altered file."""
        folder = cls.load(Path(path))
        problems = folder.problems()
        if problems:
            more = f"\n... and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
            raise UserError("\n".join(problems[:LISTED]) + more)
        return folder

    @classmethod
    def load(cls, path: Path) -> Self:
        """The folder as its dataset.json and index describe it; the shards are not looked at."""
        manifest = Manifest.read(path)
        return cls(path, manifest, load_index(path, manifest))

    def problems(self) -> list[str]:
        """What is wrong with sizes and numbers, without reading any image."""
        found = [] if len(self.index) else [f"{self.path} holds no sample"]
        for number, shard in enumerate(self.manifest.shards):
            path = self.path / shard.file
            if path.exists() and not path.is_file():
                found.append(f"{path} is not a regular file")
            elif not path.is_file():
                found.append(f"{path} is missing ({shard.samples} samples, {shard.bytes} bytes)")
            elif path.stat().st_size != shard.bytes:
                found.append(f"{path} has {path.stat().st_size} bytes instead of {shard.bytes}")
            else:
                found += self._another(number)
            rows = self.index[self.starts[number] : self.starts[number + 1]]
            ends = rows["offset"] + rows["size"]
            inside = (rows["offset"] >= BLOCK) & (rows["size"] >= 0) & (ends <= shard.bytes)
            if not (inside & (ends >= rows["offset"])).all():  # a sum may have overflowed
                found.append(f"{self.path / INDEX} points outside {shard.file}")
        labels = self.index["label"]
        if len(labels) and not -1 <= labels.min() <= labels.max() < max(1, len(self.classes)):
            found.append(f"{self.path / INDEX} has labels outside the {len(self.classes)} classes")
        return found

    def _another(self, number: int) -> list[str]:
        """The problem of a shard that is another file of the same size, such as a swapped one.

        Only the header of its last sample is looked at: in another tar it is elsewhere.
        """
        shard = self.manifest.shards[number]
        if not shard.samples:
            return []
        path, row = self.path / shard.file, self.index[self.starts[number + 1] - 1]
        try:
            with open(path, "rb") as file:
                if _header(file.fileno(), int(row["offset"])).size == row["size"]:
                    return []
        except tarfile.TarError:
            pass  # what is there is no header
        except OSError as error:
            return [f"{path} cannot be read: {error.strerror}"]
        return [
            f"{path} is damaged, or another shard has its name: its last sample does not begin at "
            f"byte {row['offset']}, where {INDEX} has it"
        ]

    def __len__(self) -> int:
        return len(self.index)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(n,) int64, -1 where a sample has none."""
        return self.index["label"].astype(np.int64)

    def label(self, sample: int) -> int:
        """The class of one sample, -1 for none; `labels` would copy those of all."""
        return int(self.index[sample]["label"])

    def shard(self, sample: int) -> str:
        """The file name of the tar that holds a sample."""
        return self.manifest.shards[self._shard_number(sample)].file

    def key(self, sample: int) -> str:
        """The WebDataset key, read from the tar header in front of the sample's image."""
        try:
            descriptor = self._descriptor(self._shard_number(sample))
            name = _header(descriptor, int(self.index[sample]["offset"])).name
        except (OSError, tarfile.TarError):
            return f"number {sample}"  # only reached while another damage is being reported
        return self.manifest.naming.split(name)[0]

    def name(self, sample: int) -> str:
        """What names a sample among all of the folder: shard/key."""
        return f"{self.shard(sample)}/{self.key(sample)}"

    def read(self, sample: int) -> bytes:
        """The encoded image; SampleError when its bytes are not those that were written."""
        row, number = self.index[sample], self._shard_number(sample)
        size = int(row["size"])
        try:
            content = os.pread(self._descriptor(number), size, int(row["offset"]))
        except OSError as error:
            raise self.error(sample, f"cannot be read: {error}") from error
        if len(content) != size:
            raise self.error(sample, f"the shard ends after {len(content)} of {size} bytes")
        if zlib.crc32(content) != row["crc32"]:
            raise self.error(sample, "damaged: its bytes do not fit the crc32 of the index")
        return content

    def error(self, sample: int, cause: str) -> SampleError:
        """The error that names a sample."""
        return SampleError(str(self.path / self.shard(sample)), self.key(sample), cause)

    def _shard_number(self, sample: int) -> int:
        assert 0 <= sample < len(self), f"sample {sample} of {len(self)}"
        return bisect.bisect_right(self.starts, sample) - 1

    def _descriptor(self, number: int) -> int:
        descriptor = self._descriptors.get(number)
        if descriptor is None:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            # half of what the system allows one process: sockets and pipes need some too
            if limit != resource.RLIM_INFINITY and len(self._descriptors) >= limit // 2:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            path = self.path / self.manifest.shards[number].file
            descriptor = self._descriptors[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return descriptor

    def _close(self, number: int) -> None:
        if number in self._descriptors:
            os.close(self._descriptors.pop(number))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest}  # files are opened anew elsewhere

    def __setstate__(self, state: dict[str, Any]) -> None:
        path, manifest = state["path"], state["manifest"]
        self.__init__(path, manifest, np.load(path / INDEX, mmap_mode="r"))

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def _header(descriptor: int, offset: int) -> tarfile.TarInfo:
    """The tar header in front of a content."""
    header = os.pread(descriptor, BLOCK, offset - BLOCK)
    return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")


def load_index(folder: Path, manifest: Manifest) -> np.ndarray:
    """The rows of index.npy, mapped into memory: all processes of a node share them."""
    path = folder / INDEX
    check_regular(path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if digest != manifest.index_sha256:
        raise UserError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}")
    try:
        index = np.lib.format.open_memmap(path, mode="r")
    except STRANGE as error:
        raise UserError(f"{path} is no index: {printable(error)}") from error
    samples = sum(shard.samples for shard in manifest.shards)
    if index.dtype != ROW or index.shape != (samples,):
        raise UserError(f"{path} has {index.shape} rows of {index.dtype}, not {samples} of {ROW}")
    return index
