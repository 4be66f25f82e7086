"""From the bytes of a file to members of a tar: what stays as it is, what is changed on the way.

Whatever loses something is named, so that it can be counted and listed.
"""

import argparse
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image

from data_tools.sources import Altered, Rejected, Sample, read
from data_tools.tars import Packed
from poa_ds.data.image.opening import LARGEST, Undecodable, check_size, opened
from poa_ds.data.image.pixels import losses, pages, png, rgb
from poa_ds.data.image.values import as_they_are
from poa_ds.system.arguments import count, whole
from poa_ds.system.errors import UsageError

EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}
FIRST, ALL = "first", "all"  # of the pages of a file
FURTHER = re.compile(r"--(?=\d{5,}$)")  # in the key of a page behind the first
KEY_LENGTH = 80  # with extension and suffixes it stays below the 100 bytes of a USTAR name


@dataclass(frozen=True)
class Recode:
    """Images with a longer short side become JPEGs with that one; 0: none."""

    short_side: int = 0
    quality: int = 92
    pages: str = FIRST
    largest: int = LARGEST  # pixels of an image that is decoded whole
    as_is: bool = False  # files are members as they are, measurements as ordinary images

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """What the options ask for; UsageError where they are unusable."""
        recode = cls(args.recode, args.quality, args.pages, args.max_pixels, args.as_is)
        if not 1 <= recode.quality <= 100:
            raise UsageError(f"--quality {recode.quality}: 1 to 100")
        if recode.largest > LARGEST and not recode.short_side:
            raise UsageError(
                f"--max-pixels {recode.largest} needs --short-side: training reads up to {LARGEST}"
            )
        if recode.as_is and recode.short_side:
            raise UsageError("--as-is leaves files as they are: without --short-side")
        return recode

    @property
    def changed(self) -> list[object]:
        """The options beyond the first two that are not at their defaults."""
        found = [x for x in (self.pages, self.largest) if x not in (FIRST, LARGEST)]
        return [*found, "as_is"] if self.as_is else found


def add_recode(parser: argparse.ArgumentParser) -> None:
    """The options for sources whose images may be larger, or other, than training needs."""
    parser.add_argument(
        "--short-side",
        type=whole,
        dest="recode",
        metavar="PIXELS",
        help="re-encode images with a longer short side down to it (default: none)",
    )
    parser.add_argument(
        "--quality", type=whole, metavar="N", help="of re-encoded JPEGs, 1 to 100 (%(default)s)"
    )
    parser.add_argument(
        "--pages",
        choices=(FIRST, ALL),
        help="of files with several (TIFF stacks, GIF): each can be an image (%(default)s)",
    )
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="keep every file as it is, TIFF of any channels and bits too (data.channels, .range)",
    )
    parser.add_argument(
        "--max-pixels",
        type=count,
        metavar="N",
        help="of an image; more than the default, at 12 bytes each in every worker, with "
        "--short-side only (%(default)s; JPEGs are not limited with --short-side)",
    )


@dataclass(frozen=True)
class Outcome:
    """What became of one sample: members, or why there are none; and what they lost."""

    packed: tuple[Packed, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    altered: tuple[Altered, ...] = ()


def pack(portion: Sequence[tuple[str, Sample, Recode]]) -> list[Outcome]:
    """(key, sample, options) -> its outcome, for several."""
    return [_outcome(*job) for job in portion]


def _outcome(key: str, sample: Sample, recode: Recode) -> Outcome:
    packed, altered = [], []
    try:
        for page, (extension, content, lost) in enumerate(usable(read(sample), recode)):
            altered += [Altered(sample.origin, change) for change in lost]
            name, note = (key, sample.note) if not page else _further(key, sample.note, page)
            packed.append(Packed(name, extension, content, sample.label, note))
    except Undecodable as error:
        return Outcome(rejected=(Rejected(sample.origin, str(error)),))
    return Outcome(tuple(packed), (), tuple(dict.fromkeys(altered)))


def _further(key: str, note: dict | None, page: int) -> tuple[str, dict]:
    """(key, note) of a page behind the first."""
    return f"{key}--{page + 1:05d}", {**(note or {}), "page": page + 1}


def usable(content: bytes, recode: Recode) -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """(extension, content, losses) of each member: JPEG and PNG as they are, others become PNG."""
    if recode.as_is:
        for extension, member in as_they_are(content, every_page=recode.pages == ALL):
            yield extension, member, ()
        return
    with opened(content, short_side=recode.short_side, largest=recode.largest) as file:
        count = pages(file) if recode.pages == ALL else 1
        for page in range(count):
            if count > 1:
                file.seek(page)
                check_size(*file.size, recode.largest)
            lost, image = losses(file, all_pages=recode.pages == ALL), rgb(file)
            as_it_is = EXTENSIONS.get(str(file.format)) if count == 1 else None
            yield *_member(image, content, as_it_is, recode), lost


def _member(
    image: np.ndarray, content: bytes, as_it_is: str | None, recode: Recode
) -> tuple[str, bytes]:
    """(extension, content); as_it_is: the extension where the file itself can be the member."""
    height, width, _ = image.shape
    if recode.short_side and min(height, width) > recode.short_side:
        return "jpg", _smaller(Image.fromarray(image), recode)
    check_size(width, height)
    return (as_it_is, content) if as_it_is else ("png", png(image))


def _smaller(image: Image.Image, recode: Recode) -> bytes:
    scale = recode.short_side / min(image.size)
    width, height = (max(recode.short_side, round(side * scale)) for side in image.size)
    check_size(width, height)
    file = io.BytesIO()
    smaller = image.resize((width, height), Image.Resampling.BICUBIC)
    smaller.save(file, "JPEG", quality=recode.quality)
    return file.getvalue()


def unique_keys(names: Sequence[str]) -> list[str]:
    """WebDataset keys: letters, digits, _ and - (no dots, it would cut there), each only once.

    None ends as those of further pages do.
    """
    taken: set[str] = set()
    last: dict[str, int] = {}  # all numbers up to it are taken
    keys = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[-KEY_LENGTH:] or "_"
        plain = FURTHER.sub("-_", plain)
        number = last.get(plain, 1)
        key = plain if number == 1 else f"{plain}_{number}"
        while key in taken:
            number += 1
            key = f"{plain}_{number}"
        last[plain] = number
        taken.add(key)
        keys.append(key)
    return keys
