"""Tar files of samples, byte for byte reproducible, and the index rows that belong to them."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from poa_ds.data.store.index import INDEX
from poa_ds.data.store.manifest import MANIFEST, Manifest, ShardFile
from poa_ds.data.store.tarwalk import BLOCK, ROW
from poa_ds.system.errors import UsageError
from poa_ds.system.files import publish, replace_bytes

RECORD = 20 * BLOCK  # bytes; archives are padded to it, as tar does


@dataclass(frozen=True)
class Limits:
    """A shard is closed before it would pass one of them."""

    images: int = 1000
    bytes: int = 250_000_000

    def check(self) -> None:
        if self.images < 1 or self.bytes < 1:
            raise UsageError("--images-per-shard and --bytes-per-shard: at least 1")


@dataclass(frozen=True)
class Packed:
    """One sample as it goes into a tar."""

    key: str
    extension: str
    content: bytes
    label: int
    note: dict[str, Any] | None

    def members(self) -> list[tuple[str, bytes]]:
        """(name, content), the image first."""
        found = [(f"{self.key}.{self.extension}", self.content)]
        if self.label >= 0:
            found.append((f"{self.key}.cls", str(self.label).encode()))
        if self.note is not None:
            found.append((f"{self.key}.json", json.dumps(self.note, sort_keys=True).encode()))
        return found


class Writer:
    """Samples -> shard-000000.tar, ...; index.npy; dataset.json last."""

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        shards: Sequence[ShardFile] = (),
        rows: Sequence[np.ndarray] = (),
    ) -> None:
        """`shards` and `rows`: those that an earlier run has finished."""
        self.folder, self.limits = folder, limits
        self._shards, self._rows = list(shards), list(rows)  # of the closed shards
        self._open_rows: list[tuple[int, int, int, int]] = []
        self._tar: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._tar is not None:
            self._tar.close()

    @property
    def samples(self) -> int:
        return sum(map(len, self._rows)) + len(self._open_rows)

    def add(self, *samples: Packed) -> ShardFile | None:
        """Appends samples that stay in one shard; where the limits ask for a new one, the old one.

        The old shard is closed before any of them.
        """
        closed = None
        blocks = [
            b"".join(_member(name, content) for name, content in sample.members())
            for sample in samples
        ]
        if self._tar is not None and (
            len(self._open_rows) >= self.limits.images
            or self._tar.tell() + sum(map(len, blocks)) + RECORD > self.limits.bytes
        ):
            closed = self._close_tar()
        if self._tar is None:
            name = f"shard-{len(self._shards):06d}.tar"
            self._tar = open(self.folder / f"{name}.partial", "wb")
            self._name, self._sha256 = name, hashlib.sha256()
        for sample, block in zip(samples, blocks, strict=True):
            place, size = self._tar.tell() + BLOCK, len(sample.content)
            self._open_rows.append((place, size, zlib.crc32(sample.content), sample.label))
            self._append(block)
        return closed

    def file(self, name: str, content: bytes) -> None:
        """Writes one complete file of the folder."""
        replace_bytes(self.folder / name, content)

    def finish(self, classes: tuple[str, ...], made: dict[str, Any], *, rejected: int) -> Manifest:
        """The manifest, written after everything else."""
        if self._tar is not None:
            self._close_tar()
        index = io.BytesIO()
        np.save(index, np.concatenate(self._rows))
        self.file(INDEX, index.getvalue())
        written = sum(shard.bytes for shard in self._shards)
        manifest = Manifest(
            tuple(self._shards),
            classes,
            hashlib.sha256(index.getvalue()).hexdigest(),
            {"samples": self.samples, "bytes": written, "rejected": rejected},
            made,
        )
        self.file(MANIFEST, manifest.to_json().encode())
        return manifest

    def _append(self, block: bytes) -> None:
        self._tar.write(block)
        self._sha256.update(block)

    def _close_tar(self) -> ShardFile:
        end = 2 * BLOCK
        self._append(b"\0" * (end + -(self._tar.tell() + end) % RECORD))
        size = self._tar.tell()
        publish(self._tar, self.folder / self._name)
        self._tar.close()
        self._tar = None
        closed = ShardFile(self._name, len(self._open_rows), size, self._sha256.hexdigest())
        self._shards.append(closed)
        self._rows.append(np.array(self._open_rows, ROW))
        self._open_rows = []
        return closed


def _member(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = len(content), 0o644, 0
    return header.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % BLOCK)
