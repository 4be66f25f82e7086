"""Whatever a stranger's folder of shards holds: one sentence, at once, and never a traceback."""

import hashlib
import io
import json
import os
import random
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools import check
from poa_ds.data.image.pixels import png
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.manifest import Manifest
from poa_ds.data.store.scan import index_tar, scan_tar
from poa_ds.system.errors import UserError
from tests.support.shards import image, make_shards, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "train"
    make_shards(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "train"))


def refused(folder: Path) -> str:
    """The one sentence that opening the folder and `poa-ds check` say."""
    with pytest.raises(UserError) as caught:
        ShardFolder.open(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert run(check, folder, "--workers", 0) == 1
    return str(caught.value)


DESCRIBED: dict[str, Callable[[dict[str, Any]], object]] = {
    "shards are no list": lambda d: d.update(shards=7),
    "a shard is a number": lambda d: d.update(shards=[3]),
    "a name is a number": lambda d: d["shards"][0].update(file=5),
    "a name is empty": lambda d: d["shards"][0].update(file=""),
    "a name has a zero byte": lambda d: d["shards"][0].update(file="a\0b"),
    "a name leads out": lambda d: d["shards"][0].update(file="../x.tar"),
    "samples are a text": lambda d: d["shards"][0].update(samples="8"),
    "samples are negative": lambda d: d["shards"][0].update(samples=-8),
    "samples are true": lambda d: d["shards"][0].update(samples=True),
    "samples are many": lambda d: d["shards"][0].update(samples=10**30),
    "bytes are a fraction": lambda d: d["shards"][0].update(bytes=1.5),
    "bytes are nothing": lambda d: d["shards"][0].update(bytes=None),
    "a checksum is a list": lambda d: d["shards"][0].update(sha256=[]),
    "classes are a number": lambda d: d.update(classes=3),
    "a class is a number": lambda d: d.update(classes=[1, 2, 3]),
    "the checksum of the index is none": lambda d: d.update(index_sha256=None),
    "counts are a list": lambda d: d.update(counts=[]),
    "made is a text": lambda d: d.update(made="x"),
    "the naming is unknown": lambda d: d["made"].update(naming={"colour": 1}),
    "the naming is a text": lambda d: d["made"].update(naming="x"),
    "the naming is nested": lambda d: d["made"].update(naming={"images": [["jpg"]]}),
    "the naming has a number": lambda d: d["made"].update(naming={"images": 5}),
    "labels are unknown": lambda d: d["made"].update(naming={"labels": "dreams"}),
    "the version is a list": lambda d: d.update(version=[1]),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_strange_description_is_refused_in_one_sentence(folder: Path, name: str) -> None:
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    DESCRIBED[name](content)
    path.write_text(json.dumps(content))
    refused(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"1" * 10_000,
        b"{}",
        b"NaN",
    ],
)
def test_what_is_no_description_is_refused_in_one_sentence(folder: Path, content: bytes) -> None:
    (folder / "dataset.json").write_bytes(content)
    refused(folder)


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + body


MANY = bytes(600)
ROWS = "[('offset', '<i8'), ('size', '<i4'), ('crc32', '<u4'), ('label', '<i4')]"
INDICES = {
    "empty": b"",
    "text": b"hello\n" * 100,
    "pickle": b"\x80\x04N.",
    "zip": b"PK\3\4" + bytes(100),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (30,)}", MANY),
    "enormous": npy(f"{{'descr': {ROWS}, 'fortran_order': False, 'shape': ({10**15},)}}"),
    "beyond": npy(f"{{'descr': {ROWS}, 'fortran_order': False, 'shape': ({10**40},)}}"),
    "negative": npy(f"{{'descr': {ROWS}, 'fortran_order': False, 'shape': (-30,)}}", MANY),
    "short": npy(f"{{'descr': {ROWS}, 'fortran_order': False, 'shape': (30,)}}", bytes(99)),
    "two dimensions": npy(f"{{'descr': {ROWS}, 'fortran_order': False, 'shape': (6, 5)}}", MANY),
    "other numbers": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (30,)}", bytes(240)),
    "no header": npy("{'descr': ", MANY),
    "brackets": npy("(" * 100, MANY),
}


def publish(folder: Path, index: bytes) -> None:
    """The index with a description that fits, as one who means harm writes it."""
    (folder / "index.npy").write_bytes(index)
    content = json.loads((folder / "dataset.json").read_text())
    content["index_sha256"] = hashlib.sha256(index).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", INDICES)
def test_a_strange_index_is_refused_in_one_sentence(folder: Path, name: str) -> None:
    publish(folder, INDICES[name])
    refused(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("offset", -1),
        ("offset", 1 << 62),
        ("offset", (1 << 63) - 1),
        ("size", -5),
        ("size", (1 << 31) - 1),
        ("label", -2),
        ("label", 3),
        ("label", 2_000_000_000),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(folder: Path, field: str, value: int) -> None:
    rows = np.load(folder / "index.npy")
    rows[field][4] = value
    file = io.BytesIO()
    np.save(file, rows)
    publish(folder, file.getvalue())
    assert "index.npy" in refused(folder)


@pytest.mark.parametrize("name", ["dataset.json", "index.npy", "shard-000001.tar"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_never_opened(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).mkdir()
    assert "not a regular file" in refused(folder)


def header(name: str = "a.jpg", size: bytes = b"%011o\0" % 3, kind: bytes = b"0") -> bytes:
    """A tar header with the right checksum."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124:136], block[156:157], block[257:265] = size, kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def binary(size: int) -> bytes:
    return (size % (1 << 96)).to_bytes(12) if size < 0 else (size | 1 << 95).to_bytes(12)


PAX = b"30 mtime=1234567890.123456789\n"
TARS = {
    "a negative size": header(size=binary(-512)),
    "a size beyond any disk": header(size=binary(1 << 70)),
    "more than the index can say": header(size=b"%011o\0" % (0x7FFFF001)),
    "an endless name": header(kind=b"L", size=b"%011o\0" % (5 << 30)),
    "an endless extended header": header(kind=b"x", size=b"%011o\0" % (2 << 20)) + bytes(2 << 20),
    "a length of many digits": header(kind=b"x", size=b"%011o\0" % 512) + b"9" * 512,
    "a length that ends the header": header(kind=b"x", size=b"%011o\0" % 10)
    + b"99 size=1\n".ljust(512),
    "a size of many digits": header(kind=b"x", size=b"%011o\0" % 40)
    + b"40 size=99999999999999999999999999999999\n".ljust(512),
    "a link": header(kind=b"2"),
    "a pipe": header(kind=b"6"),
    "a sparse file": header(kind=b"S"),
    "a text": b"hello " * 200,
    "random bytes": random.Random(0).randbytes(4096),
}


@pytest.mark.parametrize("name", TARS)
def test_a_strange_tar_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.tar").write_bytes(TARS[name] + bytes(1024))
    with pytest.raises(UserError, match=r"x\.tar") as caught:
        scan_tar(tmp_path / "x.tar")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def test_a_million_short_records_take_no_time(tmp_path: Path) -> None:
    """Each was cut off a copy of the rest: a quarter of an hour for one mebibyte."""
    content = b"4 =\n" * (1 << 18)
    head = header(kind=b"x", size=b"%011o\0" % len(content))
    (tmp_path / "x.tar").write_bytes(head + content + header() + b"abc".ljust(512) + bytes(1024))
    assert len(index_tar(tmp_path / "x.tar")) == 1


def test_what_is_said_of_a_folder_is_not_taken_for_the_next_file(tmp_path: Path) -> None:
    """Long names of folders come in extended headers too."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        below = tarfile.TarInfo("d" * 150)
        below.type = tarfile.DIRTYPE
        tar.addfile(below)
        member = tarfile.TarInfo("a.png")
        member.size = len(png(image(0)))
        tar.addfile(member, io.BytesIO(png(image(0))))
    scan = scan_tar(tmp_path / "x.tar")
    assert len(scan.rows) == 1 and scan.extensions == {"png": 1}


def test_random_damage_never_ends_in_a_traceback(folder: Path) -> None:
    """Bytes are changed in headers, with a checksum that fits again."""
    path, rng = folder / "shard-000001.tar", random.Random(1)
    whole = path.read_bytes()
    for _ in range(300):
        content, start = bytearray(whole), 512 * rng.randrange(8)
        for _ in range(rng.randint(1, 4)):
            content[start + rng.choice((*range(0, 148), 156, *range(257, 500)))] = rng.randrange(
                256
            )
        content[start + 148 : start + 156] = b" " * 8
        total = sum(content[start : start + 512])
        content[start + 148 : start + 156] = b"%06o\0 " % total
        path.write_bytes(content)
        try:
            index_tar(path)
        except UserError as error:
            assert "\n" not in str(error)


def test_names_in_a_description_are_shown_escaped(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    content["shards"][0]["file"] = "\x1b[2J\u202ex.tar"
    (folder / "dataset.json").write_text(json.dumps(content))
    assert r"\x1b[2J\u202ex.tar is missing" in refused(folder)
    assert Manifest.read(folder).shards[0].file == "\x1b[2J\u202ex.tar"


def test_a_folder_without_samples_is_refused(folder: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.load(folder / "index.npy")[:0])
    publish(folder, file.getvalue())
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"shards": []}))
    for path in folder.glob("*.tar"):
        path.unlink()
    assert refused(folder).endswith("holds no sample")
