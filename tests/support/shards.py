"""Small shard folders for tests, written by the product's own writer, and looks into them."""

import argparse
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from data_tools.shard import write
from data_tools.sources import Sample
from poa_ds.data.image.opening import LARGEST
from poa_ds.data.image.pixels import png
from poa_ds.data.store.index import ShardFolder

CLASSES = ("ant", "bee", "cat")


def image(number: int, height: int = 40, width: int = 36) -> np.ndarray:
    """(height, width, 3) uint8, smooth and different for every number."""
    y, x = np.mgrid[:height, :width] / 8
    waves = [np.sin(x * (1 + c) + number) + np.cos(y + number * (c + 1)) for c in range(3)]
    return np.uint8(127 + 60 * np.stack(waves, -1))


def options(**changed: object) -> argparse.Namespace:
    """The options that all shard commands share."""
    return argparse.Namespace(
        **{
            **{"seed": 0, "images_per_shard": 8, "bytes_per_shard": 10**9},
            **{"recode": 0, "quality": 92, "pages": "first", "max_pixels": LARGEST, "workers": 1},
            "as_is": False,
        }
        | changed
    )


def make_shards(
    folder: Path,
    count: int = 30,
    *,
    first: int = 0,
    classes: Sequence[str] = CLASSES,
    **changed: object,
) -> ShardFolder:
    """Shards of `count` PNG images, keyed image_000, ..., of class number % 3."""
    samples = [
        Sample(f"image_{number:03d}", f"image {number}", png(image(number)), number % len(classes))
        for number in range(first, first + count)
    ]
    args = options(**changed)
    write(folder, samples, classes=classes, rejected=(), tool="waves", args=args, source="waves")
    return ShardFolder.open(folder)


def run(module: ModuleType, *words: object) -> int:
    """Runs a command of the tools with these words."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(word) for word in words]))


def content(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def rejected(folder: Path) -> dict[str, str]:
    """File -> reason of rejected.jsonl."""
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return {item["file"]: item["reason"] for item in map(json.loads, lines)}


def save(path: Path, number: int) -> None:
    """Writes an image as JPEG or, by its name, PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image(number)).save(path, "JPEG" if path.suffix != ".png" else "PNG")


def samples(shards: ShardFolder) -> dict[str, tuple[bytes, int]]:
    """Key -> (image, label)."""
    return {shards.key(i): (shards.read(i), int(shards.labels[i])) for i in range(len(shards))}


def add(tar: tarfile.TarFile, name: str, found: bytes) -> None:
    """A member of that name."""
    member = tarfile.TarInfo(name)
    member.size = len(found)
    tar.addfile(member, io.BytesIO(found))


def add_tar(path: Path, members: dict[str, bytes]) -> None:
    """A tar of these members."""
    with tarfile.open(path, "w") as tar:
        for name, found in members.items():
            add(tar, name, found)
