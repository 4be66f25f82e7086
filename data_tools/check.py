"""`poa-ds check`: does a shard folder still hold exactly what was written into it?"""

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_tools.progress import progress
from poa_ds.data.index import INDEX, SampleError, ShardFolder
from poa_ds.data.manifest import MANIFEST
from poa_ds.data.pixels import Undecodable, pixels
from poa_ds.data.tarwalk import index_tar
from poa_ds.errors import UserError

SHOWN = 20  # problems; more of them say nothing new


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds check`."""
    parser.add_argument("folder", type=Path, help="shard folder, or a folder of such (train, val)")
    parser.add_argument(
        "--no-decode", action="store_true", help="compare bytes only, do not decode the images"
    )


def run(args: argparse.Namespace) -> int:
    """0 when all is well; otherwise every problem on a line of its own and 1."""
    status = 0
    for folder in splits(args.folder):
        found = []
        for problem in problems(folder, decode=not args.no_decode):
            found.append(problem)
            if len(found) <= SHOWN:
                print(problem)
        if found:
            cut = f", the first {SHOWN} shown" if len(found) > SHOWN else ""
            noun = "problem" if len(found) == 1 else "problems"
            print(f"{folder}: {len(found)} {noun}{cut}")
            status = 1
        else:
            shards = ShardFolder.open(folder)
            count = len(shards.manifest.shards)
            print(f"{folder}: {len(shards)} images, {count} shards: as they were written")
    return status


def splits(folder: Path) -> list[Path]:
    """The folder itself, or the shard folders in it, unfinished ones too."""
    if (folder / MANIFEST).exists():
        return [folder]
    names = (f"*/{MANIFEST}", "*/shard-*")
    return sorted({path.parent for name in names for path in folder.glob(name)}) or [folder]


def problems(path: Path, *, decode: bool) -> Iterator[str]:
    """Sizes, checksums, the index against the tars and (decode) every image."""
    try:
        folder = ShardFolder.load(path)
    except UserError as error:
        yield str(error)
        return
    yield from folder.problems()
    for number, shard in enumerate(folder.manifest.shards):
        file = path / shard.file
        if file.is_file() and file.stat().st_size == shard.bytes:
            yield from _shard_problems(folder, number, decode)


def _shard_problems(folder: ShardFolder, number: int, decode: bool) -> Iterator[str]:
    shard = folder.manifest.shards[number]
    path = folder.path / shard.file
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield f"{path}: its sha256 is not the one in {MANIFEST}"
    samples = range(folder.starts[number], folder.starts[number + 1])
    try:
        rows = index_tar(path)
        if not np.array_equal(rows, folder.index[samples.start : samples.stop]):
            yield f"{path}: {INDEX} does not fit it"
    except UserError as error:
        yield str(error)
    for sample in progress(samples, total=len(samples), label=shard.file, unit="images"):
        try:
            content = folder.read(sample)
            if decode:
                pixels(content)
        except Undecodable as error:
            yield str(folder.error(sample, str(error)))
        except SampleError as error:
            yield str(error)
