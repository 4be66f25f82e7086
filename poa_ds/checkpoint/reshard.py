"""The tensors of a checkpoint on any machine, whatever the ranks that wrote them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from poa_ds.checkpoint import folders, tensor_file
from poa_ds.checkpoint.state import KEYS
from poa_ds.system.errors import UserError
from poa_ds.system.files import whole_folder


class OpenCheckpoint:
    """The open files of one checkpoint; they are memory-mapped, only what is asked for is read."""

    def __init__(self, folder: Path, shards: list[tuple[Mapping[str, Any], Any]]) -> None:
        self.folder = folder
        self._shards = shards  # (its record in the manifest, its open file)
        self._there = {key for _, file in shards for key in file.keys()}

    def has(self, name: str, key: str) -> bool:
        """Whether it holds this state of the parameter: not all methods average all of them."""
        return f"{name}|{key}" in self._there

    def read(self, name: str, key: str, first: int, last: int) -> Tensor:
        """Elements `first` to `last` of a parameter's master, moment or teacher: flat, fp32."""
        found, filled = torch.empty(last - first), 0
        for record, file in self._shards:
            begin, count = record["pieces"].get(name, (0, 0))
            low, high = max(begin, first), min(begin + count, last)
            if low < high:
                piece = file.get_slice(f"{name}|{key}")[low - begin : high - begin]
                found[low - first : high - first] = piece
                filled += high - low
        if filled != last - first:
            raise UserError(f"{self.folder} lacks elements of {name}")
        return found


@contextmanager
def opened(folder: Path, manifest: Mapping[str, Any]) -> Iterator[OpenCheckpoint]:
    """The checkpoint, open. UserError: a file is no safetensors file."""
    try:
        with ExitStack() as stack:
            shards = [
                (record, stack.enter_context(safe_open(folder / record["file"], framework="pt")))
                for record in manifest["shards"]
            ]
            yield OpenCheckpoint(folder, shards)
    except SafetensorError as error:
        raise UserError(f"{folder} cannot be read: {error}") from error


def teacher(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """The whole fp32 network that is deployed, as teacher.safetensors holds it.

    The moving average, or the student where nothing is averaged.
    """
    shapes = manifest["shapes"]
    with opened(folder, manifest) as checkpoint:
        averaged = [name for name in shapes if checkpoint.has(name, "ema")]
        key, names = ("ema", averaged) if averaged else ("fp32", list(shapes))
        return {
            name: checkpoint.read(name, key, 0, math.prod(shapes[name])).view(shapes[name])
            for name in names
        }


def reshard(folder: Path, out: Path, ranks: int) -> None:
    """The same checkpoint in `ranks` shard files of about equal size. One is in memory at a time.

    Training reads it under any name of the form step00000300 in RUN/checkpoints.
    """
    manifest = folders.read_manifest(folder)
    with opened(folder, manifest) as checkpoint, whole_folder(out) as partial:
        shards = []
        for rank in range(ranks):
            own = dict(_shares(manifest["shapes"], rank, ranks))
            arrays = {
                f"{name}|{key}": checkpoint.read(name, key, first, first + count).numpy()
                for key in KEYS
                for name, (first, count) in own.items()
                if checkpoint.has(name, key)
            }
            path = partial / f"shard-{rank:05d}.safetensors"
            size, crc = tensor_file.write(path, arrays)
            shards.append({"file": path.name, "bytes": size, "crc32": crc, "pieces": own})
        extra = manifest["extra"]["file"]
        (partial / extra).write_bytes((folder / extra).read_bytes())
        folders.write_manifest(partial, manifest | {"shards": shards, "ranks": ranks})


def _shares(
    shapes: Mapping[str, list[int]], rank: int, ranks: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Parameter -> (first element, count) of one rank's part, where it has any."""
    for name, shape in shapes.items():
        elements = math.prod(shape)
        first, last = (elements * r // ranks for r in (rank, rank + 1))
        if first < last:
            yield name, (first, last - first)
