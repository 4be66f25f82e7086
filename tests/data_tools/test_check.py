"""`poa-ds check` finds every kind of damage and names it."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_tools import check
from data_tools.shard import write
from data_tools.sources import Sample
from poa_ds.data.image.pixels import png
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.manifest import Manifest
from poa_ds.system.errors import UsageError, UserError
from tests.support.shards import image, make_shards, options, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "train"
    make_shards(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "train"))


def test_whole_shards_pass(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(check, folder) == 0
    assert capsys.readouterr().out == f"{folder}: 30 images, 4 shards: as they were written\n"


def test_all_splits_of_a_folder_are_checked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, folder.parent / "val")
    assert run(check, folder.parent) == 0
    assert capsys.readouterr().out.count("as they were written") == 2
    (folder.parent / "val" / "shard-000001.tar").unlink()
    assert run(check, folder.parent) == 1
    assert "val/shard-000001.tar is missing" in capsys.readouterr().out


def test_an_unfinished_split_is_not_passed_over(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "val").mkdir()
    (folder.parent / "val" / "shard-000000.tar.partial").touch()
    assert run(check, folder.parent) == 1
    assert "val has no dataset.json: writing it was cut short" in capsys.readouterr().out


def test_a_split_that_was_never_begun_is_missed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C between train and val: train is finished, val is an empty folder."""
    (folder.parent / "val").mkdir()
    assert run(check, folder.parent) == 1
    printed = capsys.readouterr().out
    assert "train: 30 images" in printed and "val is empty: it is not a folder of shards" in printed
    (folder.parent / "val" / "unfinished.jsonl").touch()
    assert run(check, folder.parent) == 1
    assert "val has no dataset.json: writing it was cut short" in capsys.readouterr().out


def test_any_flipped_bit_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    names = ["shard-000000.tar", "shard-000003.tar", "index.npy"]
    for trial in range(30):
        path = folder / names[trial % 3]
        whole = path.read_bytes()
        place = int(rng.integers(len(whole)))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert run(check, folder, "--no-decode") == 1, f"{path.name} byte {place}"
        assert path.name in capsys.readouterr().out
        path.write_bytes(whole)


def test_a_damaged_image_is_named_by_its_key(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = ShardFolder.open(folder)
    path = folder / shards.shard(12)
    content = bytearray(path.read_bytes())
    content[int(shards.index[12]["offset"]) + 9] ^= 1
    path.write_bytes(content)
    assert run(check, folder) == 1
    out = capsys.readouterr().out
    assert f"{path}: its sha256 is not the one in dataset.json" in out
    assert f"{path}, sample {shards.key(12)}: damaged" in out
    assert f"{path}: index.npy does not fit it" in out
    assert f"{folder}: 3 problems" in out


def test_cut_and_grown_shards_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "shard-000002.tar"
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:5000], b"", whole + b"\0"):
        path.write_bytes(content)
        assert run(check, folder) == 1
        expected = f"{path} has {len(content)} bytes instead of {len(whole)}"
        assert expected in capsys.readouterr().out


def test_a_tar_that_is_not_listed_is_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training would not see it, but every tool that takes *.tar."""
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000099.tar")
    assert run(check, folder) == 1
    assert f"{folder}/shard-000099.tar is not in dataset.json" in capsys.readouterr().out


def test_an_index_of_other_tars_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every checksum is right, but two labels were swapped."""
    index = np.load(folder / "index.npy")
    index["label"][:] = np.roll(index["label"], 1)
    np.save(folder / "index.npy", index)
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    digest = hashlib.sha256((folder / "index.npy").read_bytes()).hexdigest()
    path.write_text(json.dumps(content | {"index_sha256": digest}))
    assert run(check, folder, "--no-decode") == 1
    assert "shard-000000.tar: index.npy does not fit it" in capsys.readouterr().out


def test_an_undecodable_image_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by a tool that did not look."""
    monkeypatch.setattr("data_tools.packing.usable", lambda content, _: [("png", content, ())])
    samples = [Sample("good", "good", png(image(0))), Sample("bad", "bad", png(image(1))[:400])]
    write(
        tmp_path / "x", samples, classes=(), rejected=(), tool="test", args=options(), source="test"
    )
    assert run(check, tmp_path / "x", "--no-decode") == 0
    assert run(check, tmp_path / "x") == 1
    assert "sample bad: undecodable image" in capsys.readouterr().out


def test_only_the_first_of_many_problems_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(tmp_path / "train", images_per_shard=1)
    for path in (tmp_path / "train").glob("*.tar"):
        path.unlink()
    assert run(check, tmp_path / "train") == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == check.SHOWN + 1 and out[-1].endswith("30 problems, the first 20 shown")


def test_what_is_no_shard_folder_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        run(check, tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    assert run(check, tmp_path) == 1
    assert "it is not a folder of shards" in capsys.readouterr().out


def test_a_description_survives_its_text(made: Path) -> None:
    manifest = Manifest.read(made)
    assert (made / "dataset.json").read_text() == manifest.to_json()
    assert manifest.counts == {
        "samples": 30,
        "bytes": sum(path.stat().st_size for path in made.glob("*.tar")),
        "rejected": 0,
    }
    assert manifest.made["seed"] == 0 and manifest.made["tool"] == "poa-ds shard waves"
    with pytest.raises(UserError):
        Manifest.read(made / "nowhere")
