"""CIFAR-10 -> shards, from the published Python batches or from tars of JPEG files."""

import argparse
import gzip
import json
import math
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.shard import Split, add_options, write_splits
from data_tools.sources import Sample
from poa_ds.data.image.pixels import png
from poa_ds.data.store.leftovers import leftover
from poa_ds.data.store.scan import CLASS, IMAGES, LARGEST_IMAGE, class_of, is_number, split_name
from poa_ds.data.store.tarwalk import tar_members
from poa_ds.system import paths
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.printable import printable
from poa_ds.system.regular import check_regular

BATCHES = {"train": [f"data_batch_{n}" for n in range(1, 6)], "val": ["test_batch"]}
FOLDER = "cifar-10-batches-py"
SHAPE = (-1, 3, 32, 32)
# all that the published batches are made of; a pickle could name any other function to run
SAFE = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}

# what a pickle that is cut, altered or another one raises
STRANGE = (
    *(OSError, ValueError, EOFError, LookupError, AttributeError, TypeError, ImportError),
    *(ArithmeticError, MemoryError, RecursionError, pickle.UnpicklingError),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds shard cifar10`."""
    parser.add_argument(
        "--source",
        type=paths.path,
        required=True,
        help=f"folder that holds {FOLDER} or train-*.tar[.gz] and val-*.tar[.gz]",
    )
    parser.add_argument(
        "--download", action="store_true", help="let torchvision fetch it into --source first"
    )
    add_options(parser, within=" (OUT/train and OUT/val)")


def run(args: argparse.Namespace) -> int:
    """Writes OUT/train and OUT/val."""
    if args.download:
        _download(args.source)
    if not args.source.is_dir():
        raise UsageError(f"--source {args.source}: no such folder (--download fetches the images)")
    nested = args.source / FOLDER
    folder = nested if nested.is_dir() else args.source
    batches, tars = (folder / "batches.meta").is_file(), any(folder.glob("train-*.tar*"))
    if not batches and not tars:
        raise UserError(f"{folder} has neither batches.meta nor train-*.tar (--download fetches)")
    classes = _batch_classes(folder) if batches else _tar_classes(folder)
    read = _from_batches if batches else _from_tars
    splits = {}
    for split in BATCHES:
        samples = list(read(folder, split))
        strange = next((s for s in samples if not 0 <= s.label < len(classes)), None)
        if strange is not None:
            raise UserError(
                f"{folder}: {strange.origin} is of class {strange.label}, which has no name"
            )
        splits[args.out / split] = Split(samples, classes, (), str(args.source))
    return write_splits(splits, tool="cifar10", args=args)


def _download(folder: Path) -> None:
    from torchvision.datasets import CIFAR10  # imports torch, which the other tools do without

    try:
        CIFAR10(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"CIFAR-10 could not be fetched into {folder}: {error}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[str, Any]:
    check_regular(path)
    try:
        with open(path, "rb") as file:
            found = _Unpickler(file, encoding="latin1").load()
    except STRANGE as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds none of CIFAR-10's tables")
    return found


def _batch_classes(folder: Path) -> list[str]:
    return _texts(_unpickle(folder / "batches.meta").get("label_names"), folder / "batches.meta")


def _texts(names: object, path: Path) -> list[str]:
    """The names of the classes, as a file has them."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} holds no names of classes")
    return names


def _batch(path: Path) -> tuple[np.ndarray, list[int]]:
    """(images (n, 32, 32, 3) uint8, classes) of one of the batches."""
    found = _unpickle(path)
    data, labels = found.get("data"), found.get("labels")
    numbers = isinstance(labels, list) and all(isinstance(label, int) for label in labels)
    pixels = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2
    if not (numbers and pixels and data.shape == (len(labels), math.prod(SHAPE[1:]))):
        raise UserError(f"{path} holds none of CIFAR-10's batches")
    return data.reshape(SHAPE).transpose(0, 2, 3, 1), labels


def _from_batches(folder: Path, split: str) -> Iterator[Sample]:
    number = 0
    for name in BATCHES[split]:
        for image, label in zip(*_batch(folder / name), strict=True):
            key = f"{split}_{number:05d}"
            yield Sample(key, f"{name}, image {number}", png(image), label)
            number += 1


def _tar_classes(folder: Path) -> list[str]:
    path = folder / "index.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} with the names of the classes cannot be read: {error}") from error
    return _texts(found.get("classes") if isinstance(found, dict) else None, path)


def _from_tars(folder: Path, split: str) -> Iterator[Sample]:
    paths = sorted(folder.glob(f"{split}-*.tar")) + sorted(folder.glob(f"{split}-*.tar.gz"))
    if not paths:
        raise UserError(f"{folder} has no {split}-*.tar")
    for path in paths:
        for key, members in _grouped(path).items():
            images = [content for name, content in members.items() if name in IMAGES]
            sample = f"{path}: sample {printable(key)}"
            label = class_of(members.get(CLASS, b""), sample)
            if len(images) != 1 or not is_number(label):
                raise UserError(f"{sample} is incomplete")
            yield Sample(f"{split}_{key}", f"{path.name}, {key}", images[0], int(label))


def _is_used(name: str) -> bool:
    return split_name(name)[1] in (CLASS, *IMAGES) and not leftover(name)


def _grouped(path: Path) -> dict[str, dict[str, bytes]]:
    """key -> extension -> content."""
    groups: dict[str, dict[str, bytes]] = {}
    check_regular(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            for name, content in tar_members(file, str(path), _is_used, most=LARGEST_IMAGE):
                key, extension = split_name(name)
                if _is_used(name):
                    groups.setdefault(key, {})[extension] = content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return groups
