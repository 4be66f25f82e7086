"""Rows of docs/damage.md about odd images and odd tars: what the product says of each."""

import os
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import check, foreign
from data_tools.packing import Recode, usable
from poa_ds.data.image.decoders import decoder, installed
from poa_ds.data.image.pixels import pixels, png
from poa_ds.data.image.views import decode
from poa_ds.system.errors import UserError
from tests.support.odd_images import (
    FOREIGN,
    PHOTO,
    encoded,
    jpeg_of,
    png_of,
    stack,
    tiled_tiff,
)
from tests.support.published import CROPS
from tests.support.shards import image, run

IMAGES = {
    "an empty file": b"",
    "a page of a server, `<html>`": b"<html>404</html>",
    "an EPS, whose decoder starts another program": FOREIGN["EPS"](),
    "a PDF": FOREIGN["PDF"](),
    "half a PNG": encoded(PHOTO, "PNG")[:1000],
    "a JPEG of 3 kB that announces 25,000 x 25,000 pixels": jpeg_of(25_000, 25_000),
    "a JPEG of 3 kB that announces 13,000 x 13,000": jpeg_of(13_000, 13_000),
    "a PNG that announces 30,000 x 6,000": png_of(30_000, 6_000),
    "a TIFF of 40 x 40 in a tile of 32,000 x 32,000": tiled_tiff(40, 32_000),
    "a TIFF of 32-bit numbers": encoded(Image.fromarray(np.float32([[0, 9]])), "TIFF"),
    "a TIFF of 13 pages": stack("TIFF", 13),
    "a GIF of 3 pictures": stack("GIF", 3),
    "a PNG with transparency": encoded(PHOTO.convert("RGBA"), "PNG"),
    "a JPEG for printing, CMYK": encoded(PHOTO.convert("CMYK"), "JPEG"),
}


def image_lines() -> list[str]:
    """The table of odd images; every way of reading one says the same."""
    lines = ["| file | `poa-ds shard` | training, evaluation, `poa-ds check` |", "|---|---|---|"]
    ways = [decode, pixels, *(decoder(name, CROPS) for name in installed())]
    for name, content in IMAGES.items():
        said = {_said(way, content) for way in ways}
        assert len(said) == 1, (name, said)
        lines.append(f"| {name} | {_said(_packed, content)} | {said.pop()} |")
    return lines


def _packed(content: bytes) -> str:
    ((extension, _, lost),) = usable(content, Recode())
    return "; ".join([f"taken, as .{extension}", *lost])


def _said(way: Callable[[bytes], object], content: bytes) -> str:
    try:
        found = way(content)
    except UserError as error:
        return str(error)
    return found if isinstance(found, str) else "read"


PICTURE = png(image(0))
TARS: dict[str, dict[str, bytes]] = {
    "leftovers of a Mac: `._x`, `.DS_Store`, `__MACOSX`": {
        "._a.png": b"\0\5\x16\7",
        "a.png": PICTURE,
        ".DS_Store": b"Bud1",
        "__MACOSX/._a.png": b"\0\5\x16\7",
    },
    "a `.cls` of -1": {"a.png": PICTURE, "a.cls": b"-1"},
    "a `.cls` that is a name": {"a.png": PICTURE, "a.cls": b"n01440764"},
    "a `.cls` of 2000000000": {"a.png": PICTURE, "a.cls": b"2000000000"},
    "a `.cls` of -7": {"a.png": PICTURE, "a.cls": b"-7"},
    "names such as `x.input.jpg`": {"x.input.jpg": PICTURE, "x.target.jpg": PICTURE},
    "two images of one sample": {"a.png": PICTURE, "a.jpg": PICTURE},
    "members of a sample apart": {"a.png": PICTURE, "b.png": PICTURE, "a.cls": b"0"},
    "no image": {"a.txt": b"hello"},
}


def tar_lines(place: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The table of odd tars."""
    lines = ["| in a tar | `poa-ds index` |", "|---|---|"]
    for number, (name, members) in enumerate(TARS.items()):
        folder = place / str(number)
        folder.mkdir(parents=True)
        with tarfile.open(folder / "x.tar", "w") as tar:
            for member, content in members.items():
                header = tarfile.TarInfo(member)
                header.size = len(content)
                tar.addfile(header, BytesIO(content))
        lines.append(f"| {name} | {_indexed(folder, capsys)} |")
    others: dict[str, Callable[[Path], object]] = {
        "a link": _link,
        "a pipe in the place of a tar": os.mkfifo,
        "a `.tar.gz`": lambda path: path.with_suffix(".tar.gz").touch(),
    }
    for name, make in others.items():
        folder = place / name.strip("`.")
        folder.mkdir()
        make(folder / "x.tar")
        lines.append(f"| {name} | {_indexed(folder, capsys)} |")
    return lines


def _link(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        header = tarfile.TarInfo("a.jpg")
        header.type, header.linkname = tarfile.SYMTYPE, "b.jpg"
        tar.addfile(header)


def _indexed(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    try:
        run(foreign, folder, "--workers", 0)
    except UserError as error:
        return str(error).replace(str(folder), "DIR")
    text = capsys.readouterr().out.strip().replace(str(folder), "DIR")
    assert run(check, folder, "--workers", 0) == 0
    return text
