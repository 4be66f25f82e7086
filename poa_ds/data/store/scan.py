"""From the members of a tar to its samples: which member is the image, which says the class."""

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from poa_ds.data.store.leftovers import leftover
from poa_ds.data.store.tarwalk import BLOCK, ROW, content_of, tar_entries
from poa_ds.system.errors import UserError
from poa_ds.system.printable import printable
from poa_ds.system.regular import check_regular

IMAGES = ("jpg", "jpeg", "png", "webp")
CLASS = "cls"
LISTED = 5  # extensions that a message names
LARGEST_IMAGE = 0x7FFFF000  # bytes that Linux hands over in one read; the index has 31 bits
LARGEST_CLASS = 1 << 24  # no data set has so many; what is above is no class
LONGEST_CLASS = 200  # characters of a name
NUMBERS, BY_NAME, NONE = "numbers", "names", "none"  # what the content of a .cls is


@dataclass(frozen=True)
class Naming:
    """How members are named and what their .cls says; dataset.json keeps what is not usual."""

    images: tuple[str, ...] = IMAGES  # extensions of images
    last_dot: bool = False  # where a name is cut; else at the first dot, as WebDataset does it
    labels: str = NUMBERS

    @classmethod
    def of(cls, made: Mapping[str, Any], name: str) -> Self:
        """What a dataset.json, which errors call `name`, says in its part `made`."""
        found = made.get("naming", {})
        if not isinstance(found, dict) or not found.keys() <= asdict(USUAL).keys():
            raise UserError(f"{name}: this program does not know its naming: {found}")
        images = found.get("images", IMAGES)
        words = isinstance(images, list | tuple) and all(isinstance(x, str) for x in images)
        if not words or found.get("labels", NUMBERS) not in (NUMBERS, BY_NAME, NONE):
            raise UserError(f"{name}: this program does not know its naming: {found}")
        return cls(**{**found, "images": tuple(images)})

    def to_json(self) -> dict[str, Any]:
        """The part `made` that `of` reads: empty where all is usual."""
        usual = asdict(USUAL)
        changed = {key: value for key, value in asdict(self).items() if value != usual[key]}
        return {"naming": changed} if changed else {}

    def split(self, name: str) -> tuple[str, str]:
        """(key, extension) of a member's name."""
        return split_name(name, last_dot=self.last_dot)


USUAL = Naming()
AS_THEY_ARE = Naming(images=(*IMAGES, "tif"))  # of shards whose files stay as they are


def split_name(name: str, *, last_dot: bool = False) -> tuple[str, str]:
    """(key, extension) as WebDataset cuts a member's name: at the first dot of its last part."""
    folder, _, last = name.rpartition("/")
    stem, dot, extension = last.rpartition(".") if last_dot else last.partition(".")
    if last_dot and not dot:
        stem, extension = last, ""
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


@dataclass(frozen=True)
class Scan:
    """What one tar holds."""

    rows: np.ndarray  # (n,) of ROW; the label is a place in `classes`, -1 without one
    classes: tuple[str, ...]  # what the .cls of its samples say, each once
    without_image: tuple[str, ...]  # keys of samples
    extensions: Counter[str]
    leftovers: int

    def labelled(self, number: Callable[[str], int]) -> np.ndarray:
        """The rows with the numbers of their classes."""
        rows, numbers = self.rows.copy(), np.array([*map(number, self.classes), -1], np.int64)
        rows["label"] = numbers[self.rows["label"]]
        return rows


def scan_tar(path: Path, naming: Naming = USUAL) -> Scan:
    """The samples of a tar, read from it alone; UserError names what is wrong with it."""
    check_regular(path)
    with open(path, "rb") as file:
        return _scan(file, str(path), naming)


def _scan(file: BinaryIO, path: str, naming: Naming) -> Scan:
    rows: dict[str, list[int]] = {}
    classes: dict[str, int] = {}
    extensions: Counter[str] = Counter()
    last, leftovers = None, 0
    for name, offset, size in tar_entries(file, path):
        if leftover(name):
            leftovers += 1
            continue
        key, extension = naming.split(name)
        if key != last and key in rows:
            raise UserError(f"{path}: the members of {printable(key)} do not stand together")
        last = key
        row = rows.setdefault(key, [0, 0, 0, -1])
        extensions[extension] += 1
        sample = f"{path}: sample {printable(key)}"
        if extension in naming.images:
            if row[0]:
                raise UserError(f"{sample} has two images (poa-ds index --image-ext chooses)")
            content = content_of(file, path, name, offset, size, most=LARGEST_IMAGE)
            row[:3] = offset, size, zlib.crc32(content)
        elif extension == CLASS and naming.labels != NONE:
            content = content_of(file, path, name, offset, size, most=BLOCK)
            text = class_of(content, sample)
            if text:
                row[3] = classes.setdefault(text, len(classes))
    found = np.array([tuple(row) for row in rows.values() if row[0]], ROW)
    lost = tuple(key for key, row in rows.items() if not row[0])
    return Scan(found, tuple(classes), lost, extensions, leftovers)


def class_of(content: bytes, sample: str) -> str:
    """What a .cls says: a number without leading zeros, a name, or nothing (empty, -1)."""
    try:
        text = content.decode("utf-8").strip().strip("\0")
    except UnicodeDecodeError:
        text = "\n"
    if len(text) > LONGEST_CLASS or not text.isprintable():
        raise UserError(
            f"{sample}: its class {content[:20]!r} is neither a number nor a name "
            "(poa-ds index --no-labels leaves classes out)"
        )
    if not is_number(text.removeprefix("-")):
        return text
    if int(text) < -1 or int(text) > LARGEST_CLASS:
        raise UserError(
            f"{sample}: its class {text} is none: -1 (without one) to {LARGEST_CLASS} are "
            "(poa-ds index --no-labels leaves classes out)"
        )
    return "" if text == "-1" else str(int(text))


def is_number(text: str) -> bool:
    """Whether it is written in the ten digits alone."""
    return text.isascii() and text.isdigit()


def numbers(naming: Naming, classes: Sequence[str], place: object) -> Callable[[str], int]:
    """From what the .cls of a tar says to the number of the class; UserError names the place."""
    ranks = {name: rank for rank, name in enumerate(classes)} if naming.labels == BY_NAME else {}

    def number(text: str) -> int:
        try:
            return ranks[text] if naming.labels == BY_NAME else int(text)
        except ValueError:
            raise UserError(f"{place}: the class {text!r} is no number") from None
        except KeyError:
            raise UserError(f"{place}: the class {text!r} is none of the data set's") from None

    return number


def is_dotted(extension: str, naming: Naming) -> bool:
    """Whether it seems to be that of an image whose name has dots."""
    return extension not in naming.images and extension.rpartition(".")[2] in IMAGES


def listed(extensions: Counter[str]) -> str:
    """The extensions that were met, and how one of them is chosen: the end of a message."""
    if not extensions:
        return ""
    most = extensions.most_common(LISTED)
    text = ", ".join(f"{printable(name) or 'nothing'} ({count})" for name, count in most)
    more = f" and {len(extensions) - LISTED} more" if len(extensions) > LISTED else ""
    ends = [printable(name) for name, _ in most if name.rpartition(".")[2] in IMAGES]
    hint = (
        f": `poa-ds index --image-ext {end}` takes such for images, `--last-dot` cuts names at "
        "their last dot"
        for end in ends
    )
    return f"; names end in {text}{more}{next(hint, '')}"


def index_tar(path: Path) -> np.ndarray:
    """(n,) rows of ROW of a tar of this program, in which every sample has an image."""
    scan = scan_tar(path, AS_THEY_ARE)
    missing = scan.without_image
    if missing:
        raise UserError(f"{path}: {len(missing)} samples without an image, e.g. {missing[0]}")
    return scan.labelled(numbers(USUAL, (), path))
