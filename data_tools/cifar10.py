"""CIFAR-10 -> shards, from the published Python batches or from tars of JPEG files."""

import argparse
import gzip
import json
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.shard import Split, add_options, write_splits
from data_tools.sources import Sample
from poa_ds.data.image.pixels import png
from poa_ds.data.store.leftovers import leftover
from poa_ds.data.store.scan import CLASS, IMAGES, LARGEST_IMAGE, split_name
from poa_ds.data.store.tarwalk import tar_members
from poa_ds.system import paths
from poa_ds.system.errors import UsageError, UserError

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
    add_options(parser)


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
    splits = {
        args.out / split: Split(list(read(folder, split)), classes, (), str(args.source))
        for split in BATCHES
    }
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
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except (OSError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _batch_classes(folder: Path) -> list[str]:
    return list(_unpickle(folder / "batches.meta")["label_names"])


def _from_batches(folder: Path, split: str) -> Iterator[Sample]:
    number = 0
    for name in BATCHES[split]:
        batch = _unpickle(folder / name)
        images = batch["data"].reshape(SHAPE).transpose(0, 2, 3, 1)
        for image, label in zip(images, batch["labels"], strict=True):
            key = f"{split}_{number:05d}"
            yield Sample(key, f"{name}, image {number}", png(image), int(label))
            number += 1


def _tar_classes(folder: Path) -> list[str]:
    path = folder / "index.json"
    try:
        return list(json.loads(path.read_text("utf-8"))["classes"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} with the names of the classes cannot be read: {error}") from error


def _from_tars(folder: Path, split: str) -> Iterator[Sample]:
    paths = sorted(folder.glob(f"{split}-*.tar")) + sorted(folder.glob(f"{split}-*.tar.gz"))
    if not paths:
        raise UserError(f"{folder} has no {split}-*.tar")
    for path in paths:
        for key, members in _grouped(path).items():
            images = [content for name, content in members.items() if name in IMAGES]
            if len(images) != 1 or not members.get("cls", b"").strip().isdigit():
                raise UserError(f"{path}: sample {key} is incomplete")
            origin = f"{path.name}, {key}"
            yield Sample(f"{split}_{key}", origin, images[0], int(members["cls"]))


def _is_used(name: str) -> bool:
    return split_name(name)[1] in (CLASS, *IMAGES) and not leftover(name)


def _grouped(path: Path) -> dict[str, dict[str, bytes]]:
    """key -> extension -> content."""
    groups: dict[str, dict[str, bytes]] = {}
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
