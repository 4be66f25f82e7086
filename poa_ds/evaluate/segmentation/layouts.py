"""Images with a mask each, as data sets of segmentation lay them out in folders."""

import argparse
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.data.image.opening import Undecodable
from poa_ds.data.image.views import decode
from poa_ds.data.store.index import SampleError
from poa_ds.evaluate.embed import sources
from poa_ds.evaluate.embed.sources import Files
from poa_ds.evaluate.segmentation import masks
from poa_ds.system import paths
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.regular import check_regular

LAYOUTS = ("ade20k", "voc", "folder")
ADE20K, VOC = 150, 21  # classes
NAMES = "classes.txt"


@dataclass(frozen=True)
class Masked:
    """place: how messages name it. first, ignore: numbers in the masks, of class 0 and of none.

    classes: how many; None: as many as are found. names: theirs, where they are known. resize:
    whether a mask of another size than its image takes the image's.
    """

    place: str
    images: Files
    masks: Files
    first: int
    ignore: int
    classes: int | None
    names: Sequence[str] = ()
    resize: bool = False

    @property
    def hash(self) -> str:
        """Of names, lengths and times of change of images and masks."""
        return hashlib.sha256(f"{self.images.hash} {self.masks.hash}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def numbers(self, row: int) -> np.ndarray:
        """(H, W) int32: what stands in the mask. SampleError: it is damaged; else UserError."""
        name = self.masks.names[row]
        try:
            return masks.numbers(self.masks.read(row))
        except (Undecodable, OSError) as error:
            raise SampleError(self.place, name, str(error)) from error
        except UserError as error:
            raise UserError(f"{self.masks.root / name}: {error}") from error

    def pair(self, row: int) -> tuple[Tensor, Tensor]:
        """(image (3, H, W) uint8, classes (H, W) int16). SampleError: one of them is damaged."""
        try:
            image = decode(self.images.read(row))
        except (Undecodable, OSError) as error:
            raise SampleError(self.place, self.images.key(row), str(error)) from error
        found = masks.classes(self.numbers(row), first=self.first, ignore=self.ignore)
        mask = torch.from_numpy(found)
        if mask.shape != image.shape[-2:]:
            self.check_size(row, tuple(mask.shape), tuple(image.shape[-2:]))
            mask = resized_mask(mask, tuple(image.shape[-2:]))
        return image, mask

    def check_size(self, row: int, mask: tuple[int, ...], image: tuple[int, ...]) -> None:
        """UserError: the mask has another (height, width) than its image, and may not."""
        if mask != image and not self.resize:
            raise UserError(
                f"{self.masks.root / self.masks.names[row]} is {mask[1]} x {mask[0]} pixels, its "
                f"image {image[1]} x {image[0]}; --resize-masks takes the nearest pixels"
            )


def resized_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """The mask (H, W) of another size, each pixel from the nearest one."""
    wide = F.interpolate(mask[None, None].float(), size, mode="nearest-exact")  # exact to 2**24
    return wide[0, 0].to(mask.dtype)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where images and masks are."""
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        required=True,
        help="ade20k: images/training/x.jpg, annotations/training/x.png; voc: JPEGImages, "
        "SegmentationClass, ImageSets/Segmentation/train.txt; folder: images/x.jpg, masks/x.png "
        "and, if it has names, classes.txt",
    )
    parser.add_argument(
        "--train", type=paths.path, required=True, metavar="DIR", help="to learn from"
    )
    parser.add_argument(
        "--val",
        type=paths.path,
        metavar="DIR",
        help="to measure on (of ade20k and voc: as --train)",
    )
    parser.add_argument(
        "--ignore",
        type=int,
        metavar="NUMBER",
        help="of pixels without a class (255; of ade20k 0)",
    )
    parser.add_argument(
        "--resize-masks", action="store_true", help="that have another size than their image"
    )


def both(args: argparse.Namespace) -> tuple[Masked, Masked]:
    """What to learn from, and what to measure on. UserError: they do not fit together."""
    if args.layout == "folder" and args.val is None:
        raise UsageError("--layout folder needs --val DIR: the images to measure on")
    train = _opened(args, args.train, "train")
    val = _opened(args, args.val or args.train, "val")
    if train.hash == val.hash:
        raise UsageError(f"{train.place} and {val.place} hold the same images")
    if train.names and val.names and train.names != val.names:
        raise UserError(f"{train.place}/{NAMES} and {val.place}/{NAMES} differ")
    return train, val


def _opened(args: argparse.Namespace, root: Path, part: str) -> Masked:
    if args.layout == "voc":
        return _voc(args, root, part)
    if args.layout == "ade20k":
        part = {"train": "training", "val": "validation"}[part]
        images = sources.below(root / "images" / part, "--layout ade20k:")
        return _masked(args, images, root / "annotations" / part, 1, 0, ADE20K)
    images = sources.below(root / "images", "--layout folder:")
    names = _names(root / NAMES)
    return _masked(args, images, root / "masks", 0, 255, len(names) or None, names)


def _masked(
    args: argparse.Namespace,
    images: Files,
    root: Path,
    first: int,
    ignore: int,
    classes: int | None,
    names: Sequence[str] = (),
) -> Masked:
    """Images with the masks of the same names below a root. UserError: one has none."""
    found = [str(Path(name).with_suffix(".png")) for name in images.names]
    place = images.root.parent if args.layout == "folder" else images.root
    _check_there(f"{place}: without a mask", root, found)
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        raise UserError(f"{place}: {len(twice)} masks of several images each: {_some(twice)}")
    ignore = ignore if args.ignore is None else args.ignore
    mask_files = Files(root, found, [-1] * len(found))
    return Masked(str(place), images, mask_files, first, ignore, classes, names, args.resize_masks)


def _voc(args: argparse.Namespace, root: Path, part: str) -> Masked:
    path = root / "ImageSets" / "Segmentation" / f"{part}.txt"
    keys = [key for line in _lines(path) if (key := line.strip())]
    if not keys:
        raise UserError(f"{path} names no image")
    images = [f"{key}.jpg" for key in keys]
    _check_there(f"{path}: without an image", root / "JPEGImages", images)
    files = Files(root / "JPEGImages", images, [-1] * len(images))
    return _masked(args, files, root / "SegmentationClass", 0, 255, VOC)


def _names(path: Path) -> list[str]:
    """A class per line, in the order of their numbers; [] without the file."""
    if not path.exists():
        return []
    names = [line.strip() for line in _lines(path)]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise UserError(f"{path}: a line without a name, or none: it has the name of a class each")
    return names


def _lines(path: Path) -> list[str]:
    check_regular(path)
    try:
        return path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _check_there(what: str, root: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise UserError(f"{what} in {root}: {len(missing)} of {len(names)}: {_some(missing)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
