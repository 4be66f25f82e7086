"""Patches of the photographs that ship inside scikit-image and scikit-learn: a data set in the box.

Training patches come from the left 70 % of each photograph, validation patches from the right 30 %;
the label is the photograph.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.shard import Split, add_options, write_splits
from data_tools.sources import Sample
from poa_ds.data.image.opening import opened
from poa_ds.data.image.pixels import png
from poa_ds.system import arguments
from poa_ds.system.errors import UsageError, UserError

PHOTOS = {
    "skimage": (
        "data",
        "astronaut.png brick.png camera.png cell.png chelsea.png coffee.png coins.png grass.png "
        "gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png "
        "retina.jpg rocket.jpg text.png",
    ),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
}
TRAINING_SHARE = 0.7  # of the width of a photograph


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds shard photos`."""
    add_options(parser, within=" (OUT/train and OUT/val)")
    for name, value, text in (
        ("size", 32, "of a patch in pixels"),
        ("train", 150, "training patches of each photograph"),
        ("val", 40, "validation patches of each photograph"),
        ("short-side", 256, "photographs are scaled down to it first"),
    ):
        parser.add_argument(
            f"--{name}", type=arguments.count, default=value, metavar="N", help=f"{text} ({value})"
        )
    parser.add_argument("--gray", action="store_true", help="without colour, a harder task")


def run(args: argparse.Namespace) -> int:
    """Writes OUT/train and OUT/val."""
    if args.size > (1 - TRAINING_SHARE) * args.short_side:
        raise UsageError(
            f"--size {args.size} does not fit into the right {1 - TRAINING_SHARE:.0%} of a "
            f"photograph with --short-side {args.short_side}"
        )
    files = photographs()
    sets: dict[str, list[Sample]] = {"train": [], "val": []}
    rng = np.random.Generator(np.random.PCG64(args.seed))
    for label, path in enumerate(files):
        _cut(_pixels(path, args.short_side, args.gray), path.stem, label, args, rng, sets)
    classes, source = [path.stem for path in files], "photographs of scikit-image and scikit-learn"
    splits = {args.out / name: Split(found, classes, (), source) for name, found in sets.items()}
    return write_splits(splits, tool="photos", args=args)


def photographs() -> list[Path]:
    """The files, in the order of the labels; UserError when a package or a file is missing."""
    files = []
    for package, (folder, names) in PHOTOS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(
                f"the photographs need the package {package}: pip install 'poa_ds[demo]'"
            )
        files += [Path(spec.origin).parent / folder / name for name in names.split()]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise UserError(f"photographs are missing in this version: {', '.join(missing)}")
    return files


def _pixels(path: Path, short_side: int, gray: bool) -> np.ndarray:
    with opened(path.read_bytes()) as file:
        photo = file.convert("L" if gray else "RGB").convert("RGB")
    scale = short_side / min(photo.size)
    if scale < 1:
        size = round(photo.width * scale), round(photo.height * scale)
        photo = photo.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(photo)


def _cut(
    photo: np.ndarray,
    name: str,
    label: int,
    args: argparse.Namespace,
    rng: np.random.Generator,
    sets: dict[str, list[Sample]],
) -> None:
    """Appends the patches of one photograph to both sets."""
    height, width, size = photo.shape[0], photo.shape[1], args.size
    border = int(width * TRAINING_SHARE)
    for split, count, left, right in (
        ("train", args.train, 0, border - size),
        ("val", args.val, border, width - size),
    ):
        if right < left or height < size:
            raise UserError(f"photograph {name} is too small for patches of {size} pixels")
        for number in range(count):
            y, x = rng.integers(0, height - size + 1), rng.integers(left, right + 1)
            patch = png(photo[y : y + size, x : x + size])
            key = f"{name}_{number:05d}"
            sets[split].append(Sample(key, key, patch, label))
