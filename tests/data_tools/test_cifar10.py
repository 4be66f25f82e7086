"""CIFAR-10 in the forms in which it is passed around."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_tools import cifar10
from poa_ds.data.image.pixels import pixels
from poa_ds.data.store.index import ShardFolder
from poa_ds.system.errors import UsageError, UserError
from tests.conftest import shared
from tests.support.shards import run, samples


def test_cifar_from_tars(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    original = shared("data/cifar10_32_jpg_small")
    for name in ("index.json", "train-000000.tar", "val-000001.tar"):
        shutil.copy(original / name, source)
    run(cifar10, "--source", source, "--out", tmp_path / "out")
    train = ShardFolder.open(tmp_path / "out" / "train")
    theirs = {
        f"train_{s['__key__']}": (s["jpg"], int(s["cls"]))
        for s in webdataset.WebDataset(str(original / "train-000000.tar"), shardshuffle=False)
    }
    assert samples(train) == theirs and len(theirs) == 500
    assert train.classes[:2] == ("airplane", "automobile") and len(train.classes) == 10
    path = source / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"train-000000\.tar: cut short"):
        run(cifar10, "--source", source, "--out", tmp_path / "again")


def test_cifar_from_compressed_tars(tmp_path: Path) -> None:
    original = shared("data/cifar10_32_jpg_full")
    for name in ("index.json", "train-000000.tar.gz", "val-000000.tar.gz"):
        shutil.copy(original / name, tmp_path)
    found = list(cifar10._from_tars(tmp_path, "train"))
    assert len(found) == 2500 and {sample.label for sample in found} == set(range(10))
    path = tmp_path / "val-000000.tar.gz"
    whole = path.read_bytes()
    # cut, and what zlib refuses before gzip's checksum can
    for damaged in (whole[:50_000], whole[:30] + b"\xff" * 9 + whole[39:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"val-000000\.tar\.gz cannot be read"):
            list(cifar10._from_tars(tmp_path, "val"))


def test_cifar_from_the_published_batches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (6, 7, 3072), dtype=np.uint8)
    batches = tmp_path / "source" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    for name, images in zip(names, rows, strict=True):
        batch = {"data": images, "labels": [int(image[0]) % 10 for image in images]}
        (batches / name).write_bytes(dump(batch))
    (batches / "batches.meta").write_bytes(dump({"label_names": [f"c{n}" for n in range(10)]}))
    run(cifar10, "--source", tmp_path / "source", "--out", tmp_path / "out")
    train, val = ShardFolder.open(tmp_path / "out/train"), ShardFolder.open(tmp_path / "out/val")
    assert (len(train), len(val)) == (35, 7)
    for key, (encoded, label) in samples(train).items():
        number = int(key.removeprefix("train_"))
        expected = rows[number // 7, number % 7]
        assert np.array_equal(pixels(encoded)[0].transpose(2, 0, 1).flatten(), expected)
        assert label == expected[0] % 10
    (batches / "test_batch").write_bytes(dump(eval))
    with pytest.raises(UserError, match=r"test_batch cannot be read: it asks for __builtin__.eval"):
        run(cifar10, "--source", tmp_path / "source", "--out", tmp_path / "again")


def dump(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)  # as Python 2 wrote the published files


def test_a_missing_cifar_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        run(cifar10, "--source", tmp_path / "nowhere", "--out", tmp_path / "out")
    with pytest.raises(UserError, match=r"neither batches.meta nor train-\*.tar"):
        run(cifar10, "--source", tmp_path, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"\x80\x04N.",
        b"\x80\x04]q\0.",
        b"\x80\x04}q\0.",
        b"\x80\x04h\x05.",
        b"(" * 9999,
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    ],
)
def test_strange_files_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    """Cut, empty, other tables, and one that asks for os.system."""
    for name in ("batches.meta", "data_batch_1"):
        (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": ["ant"]}))
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as caught:
            run(cifar10, "--source", tmp_path, "--out", tmp_path / "out")
        assert "\n" not in str(caught.value)
