"""`poa-ds index`: the index of WebDataset tars that other tools wrote; they stay as they are."""

import argparse
import hashlib
import io
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_tools.parallel import ordered
from data_tools.shard import REJECTED, add_workers, version
from poa_ds.data.store.index import INDEX
from poa_ds.data.store.leftovers import leftover
from poa_ds.data.store.manifest import JOURNAL, MANIFEST, Manifest, ShardFile
from poa_ds.data.store.scan import (
    BY_NAME,
    CLASS,
    IMAGES,
    NONE,
    NUMBERS,
    USUAL,
    Naming,
    Scan,
    is_dotted,
    is_number,
    listed,
    numbers,
    scan_tar,
)
from poa_ds.data.store.tree import files
from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.files import replace_bytes, replace_text
from poa_ds.system.printable import printable
from poa_ds.system.progress import progress
from poa_ds.system.regular import check_regular

DENSE = 1000  # numbers of classes that are kept as they are, however few images there are
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds index`."""
    parser.add_argument("folder", type=paths.path, help="folder of tars, also in sub-folders")
    parser.add_argument(
        "--classes",
        type=paths.path,
        help="names of the classes, one per line (default: their numbers)",
    )
    parser.add_argument("--no-labels", action="store_true", help="leave out what .cls members say")
    parser.add_argument(
        "--image-ext",
        default=",".join(IMAGES),
        metavar="EXT,EXT",
        help="which member of a sample is its image, e.g. input.jpg (%(default)s)",
    )
    parser.add_argument(
        "--last-dot",
        action="store_true",
        help="names of members are cut at their last dot, not as WebDataset does at their first",
    )
    add_workers(parser)


@dataclass(frozen=True)
class Found:
    """One tar: how dataset.json lists it, and what is in it."""

    shard: ShardFile
    scan: Scan


@dataclass(frozen=True)
class Indexed:
    """What was written, and what was passed over."""

    manifest: Manifest
    leftovers: int
    unlabelled: int
    hint: str  # where names of images seem to have dots


def run(args: argparse.Namespace) -> int:
    """Writes index.npy, rejected.jsonl and dataset.json beside the tars."""
    images = tuple(word.strip().lstrip(".").lower() for word in args.image_ext.split(","))
    if not all(images) or CLASS in images:
        raise UsageError(f"--image-ext {args.image_ext}: extensions with commas between them")
    if args.no_labels and args.classes is not None:
        raise UsageError("--no-labels and --classes contradict each other")
    naming = Naming(images, args.last_dot, NONE if args.no_labels else NUMBERS)
    found = index_folder(args.folder, args.classes, naming, workers=args.workers)
    counts = found.manifest.counts
    rest = f"{counts['rejected']} samples without an image, see {args.folder / REJECTED}"
    rest += found.hint if counts["rejected"] else ""
    rest = rest if counts["rejected"] else "every sample has one"
    text = f"{args.folder}: {counts['samples']} images, {len(found.manifest.shards)} tars; {rest}"
    if 0 < found.unlabelled < counts["samples"]:
        text += f"; {found.unlabelled} without a class"
    if found.leftovers:
        text += f"; {found.leftovers} leftovers of file managers are passed over"
    tell(printable(text))
    return 0


def index_folder(
    folder: Path, names: Path | None, naming: Naming = USUAL, *, workers: int
) -> Indexed:
    """Writes the manifest beside the tars; names: a file with those of the classes."""
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder / MANIFEST} exists: remove it to build the index anew")
    tars, leftovers = _tars(folder)
    unfinished = sorted(folder.rglob(JOURNAL))
    if unfinished:
        raise UserError(
            f"{unfinished[0].parent} is being written by `poa-ds shard`, or that was cut short; "
            "the same command continues it and makes the index"
        )
    done = ordered(_scan, [(folder, tar, naming) for tar in tars], workers)
    found = list(progress(done, total=len(tars), label="index", unit="tars"))
    images = sum(one.shard.samples for one in found)
    extensions = sum((one.scan.extensions for one in found), Counter())
    if not images:
        raise UserError(f"{folder}: no image in {len(tars)} tars{listed(extensions)}")
    said = {text for one in found for text in one.scan.classes}
    naming, classes = _classes(naming, said, names, images)
    index = np.concatenate(
        [one.scan.labelled(numbers(naming, classes, folder / one.shard.file)) for one in found]
    )
    manifest = _write(folder, found, index, classes, naming)
    leftovers += sum(one.scan.leftovers for one in found)
    dotted = {name: count for name, count in extensions.items() if is_dotted(name, naming)}
    unlabelled = int((index["label"] < 0).sum())
    return Indexed(manifest, leftovers, unlabelled, listed(Counter(dotted)))


def _write(
    folder: Path,
    found: Sequence[Found],
    index: np.ndarray,
    classes: tuple[str, ...],
    naming: Naming,
) -> Manifest:
    """The manifest of the tars, which is written last."""
    lost = [
        {"file": f"{one.shard.file}, sample {key}", "reason": "no image"}
        for one in found
        for key in one.scan.without_image
    ]
    content = io.BytesIO()
    np.save(content, index)
    manifest = Manifest(
        tuple(one.shard for one in found),
        classes,
        hashlib.sha256(content.getvalue()).hexdigest(),
        {
            "samples": len(index),
            "bytes": sum(one.shard.bytes for one in found),
            "rejected": len(lost),
        },
        {"tool": "poa-ds index", "version": version(), **naming.to_json()},
    )
    try:
        replace_text(folder / REJECTED, "".join(json.dumps(item) + "\n" for item in lost))
        replace_bytes(folder / INDEX, content.getvalue())
        replace_text(folder / MANIFEST, manifest.to_json())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    return manifest


def _tars(folder: Path) -> tuple[list[str], int]:
    """(the tars below a folder, how many files are leftovers)."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    found, passed = files(folder, named_from=folder)
    if passed:
        file, reason = passed[0]
        raise UserError(f"{folder / file}: {reason}")
    names = sorted(str(path.relative_to(folder)) for path in found)
    every = len(names)
    names = [name for name in names if not leftover(name)]
    packed = [name for name in names if name.endswith(COMPRESSED)]
    if packed:
        raise UserError(
            f"{folder / packed[0]} is compressed ({len(packed)} such files): samples cannot be "
            "read by their place in it; unpack it to a plain .tar"
        )
    tars = [name for name in names if name.endswith(".tar")]
    if not tars:
        raise UserError(f"{folder} has no .tar")
    return tars, every - len(names)


def _scan(job: tuple[Path, str, Naming]) -> Found:
    folder, name, naming = job
    path = folder / name
    check_regular(path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        scan = scan_tar(path, naming)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    shard = ShardFile(name, len(scan.rows), path.stat().st_size, digest)
    return Found(shard, scan)


def _classes(
    naming: Naming, said: Collection[str], names: Path | None, images: int
) -> tuple[Naming, tuple[str, ...]]:
    """(what the .cls say, the names of the classes); said: the contents of all .cls."""
    counted = all(map(is_number, said))
    count = max(map(int, said), default=-1) + 1 if counted else 0
    if names is not None:
        given = _names(names)
        if counted and len(given) < count:
            raise UserError(f"--classes {names}: {len(given)} names, but labels up to {count - 1}")
        unknown = sorted(set(said) - set(given))
        if not counted and unknown:
            raise UserError(f"--classes {names}: {unknown[0]!r} is not in it, but a class")
        return (naming if counted else replace(naming, labels=BY_NAME)), given
    if counted and count <= max(images, DENSE):
        return naming, tuple(map(str, range(count)))
    # names, or numbers so far apart that most of them are no class
    order = sorted(said, key=int) if counted else sorted(said)
    return replace(naming, labels=BY_NAME), tuple(order)


def _names(path: Path) -> tuple[str, ...]:
    try:
        found = tuple(path.read_text("utf-8").split("\n"))
    except FileNotFoundError:
        raise UsageError(f"--classes {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path} cannot be read: {error}") from error
    return found[:-1] if found[-1] == "" else found
