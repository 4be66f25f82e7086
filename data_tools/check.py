"""`poa-ds check`: does a shard folder still hold exactly what was written into it?"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_tools.parallel import ordered
from data_tools.shard import add_workers
from poa_ds.data.image.opening import Undecodable, opened
from poa_ds.data.image.pixels import losses, rgb
from poa_ds.data.image.values import check_pages, is_tiff
from poa_ds.data.store.index import INDEX, SampleError, ShardFolder
from poa_ds.data.store.leftovers import leftover
from poa_ds.data.store.manifest import JOURNAL, MANIFEST, Manifest
from poa_ds.data.store.scan import BY_NAME, numbers, scan_tar
from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.printable import printable
from poa_ds.system.progress import progress

SHOWN = 20  # problems; more of them say nothing new
ShardPart = tuple[Path, Manifest, np.ndarray]  # folder, manifest of one shard, its rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds check`."""
    parser.add_argument(
        "folder", type=paths.path, help="shard folder, or a folder of such (train, val)"
    )
    parser.add_argument(
        "--no-decode", action="store_true", help="compare bytes only, do not decode the images"
    )
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    """0 when all is well; otherwise every problem on a line of its own and 1."""
    if not args.folder.is_dir():
        raise UsageError(f"{args.folder}: no such folder")
    status = 0
    for folder in splits(args.folder):
        found, lost = [], Counter()
        for problem in problems(folder, lost, decode=not args.no_decode, workers=args.workers):
            found.append(problem)
            if len(found) <= SHOWN:
                tell(printable(problem))
        if found:
            cut = f", the first {SHOWN} shown" if len(found) > SHOWN else ""
            noun = "problem" if len(found) == 1 else "problems"
            tell(f"{folder}: {len(found)} {noun}{cut}")
            status = 1
        else:
            shards = ShardFolder.open(folder)
            count = len(shards.manifest.shards)
            tell(f"{folder}: {len(shards)} images, {count} shards: as they were written")
            for kind, count in sorted(lost.items()):
                tell(f"  when they are read, of {count} images {kind}")
    return status


def splits(folder: Path) -> list[Path]:
    """The folder itself, or the shard folders in it, unfinished ones too.

    A command that writes several makes all of them first: an empty one is unfinished.
    """
    if (folder / MANIFEST).exists():
        return [folder]
    names = (f"*/{MANIFEST}", f"*/{JOURNAL}", "*/shard-*")
    found = {path.parent for name in names for path in folder.glob(name)}
    if found:
        found |= {path for path in folder.iterdir() if path.is_dir() and _is_empty(path)}
    return sorted(found) or [folder]


def _is_empty(folder: Path) -> bool:
    return not leftover(folder.name) and all(leftover(path.name) for path in folder.iterdir())


def problems(path: Path, lost: Counter[str], *, decode: bool, workers: int = 1) -> Iterator[str]:
    """Sizes, checksums, the index against the tars and (decode) every image.

    lost: counts what reading the images leaves out, which is no problem.
    """
    try:
        folder = ShardFolder.load(path)
    except UserError as error:
        yield str(error)
        return
    yield from folder.problems()
    yield from _strays(folder)
    jobs = [
        (_alone(folder, number), decode)
        for number, shard in enumerate(folder.manifest.shards)
        if _has_size(path / shard.file, shard.bytes)
    ]
    done = ordered(_shard_problems, jobs, workers)
    for found, left_out in progress(done, total=len(jobs), label=path.name, unit="shards"):
        lost.update(left_out)
        yield from found


def _strays(folder: ShardFolder) -> Iterator[str]:
    """Tars beside the shards that no reader of the index would see, but every other tool."""
    listed = {folder.path / shard.file for shard in folder.manifest.shards}
    for place in sorted({path.parent for path in listed}):
        for path in sorted(set(place.glob("*.tar")) - listed):
            if not leftover(path.name):
                yield f"{path} is not in {MANIFEST}"


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _alone(folder: ShardFolder, number: int) -> ShardPart:
    """What a worker needs to know of one shard."""
    rows = folder.index[folder.starts[number] : folder.starts[number + 1]]
    manifest, shard = folder.manifest, folder.manifest.shards[number]
    classes = manifest.classes if manifest.naming.labels == BY_NAME else ()
    return folder.path, replace(manifest, shards=(shard,), classes=classes), np.array(rows)


def _shard_problems(job: tuple[ShardPart, bool]) -> tuple[list[str], Counter[str]]:
    """(what is wrong with one shard of a folder, what reading its images leaves out)."""
    (path, manifest, rows), decode = job
    folder, found, lost = ShardFolder(path, manifest, rows), [], Counter()
    shard = manifest.shards[0]
    file = path / shard.file
    try:
        with open(file, "rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != shard.sha256:
                found.append(f"{file}: its sha256 is not the one in {MANIFEST}")
        number = numbers(manifest.naming, manifest.classes, file)
        if not np.array_equal(scan_tar(file, manifest.naming).labelled(number), rows):
            found.append(f"{file}: {INDEX} does not fit it")
    except UserError as error:
        found.append(str(error))
    except OSError as error:
        found.append(f"{file} cannot be read: {error.strerror}")
    for sample in range(len(rows)):
        try:
            image = folder.read(sample)
            if decode and is_tiff(image):  # a measurement, kept as it was
                check_pages(image)
            elif decode:
                with opened(image) as file:
                    lost.update(loss.split(":")[0] for loss in losses(file))
                    rgb(file)
        except Undecodable as error:
            found.append(str(folder.error(sample, str(error))))
        except SampleError as error:
            found.append(str(error))
    return found, lost
