"""Writing shards: the same bytes each time, and no file is lost without a reason."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_tools import folder, imagenet, shard
from data_tools.sources import Rejected, Sample
from poa_ds.data.image.opening import NO_IMAGE
from poa_ds.data.image.pixels import pixels, png
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.scan import LARGEST_IMAGE
from poa_ds.system.errors import UsageError, UserError
from tests.support.shards import content, image, make_shards, options, rejected, run, samples, save


def test_the_same_input_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_shards(tmp_path / name)
    make_shards(tmp_path / "other", seed=1)
    first, second, other = (content(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    assert first.keys() == other.keys() and first["index.npy"] != other["index.npy"]


def test_members_carry_no_time_and_no_owner(tmp_path: Path) -> None:
    make_shards(tmp_path / "train")
    for path in (tmp_path / "train").glob("*.tar"):
        assert path.stat().st_size % 10240 == 0
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                assert member.mode == 0o644 and member.name.count(".") == 1


def test_limits_close_a_shard(tmp_path: Path) -> None:
    by_count = make_shards(tmp_path / "count", images_per_shard=7)
    assert [shard.samples for shard in by_count.manifest.shards] == [7, 7, 7, 7, 2]
    by_size = make_shards(tmp_path / "size", images_per_shard=100, bytes_per_shard=40_000)
    sizes = [shard.bytes for shard in by_size.manifest.shards]
    assert len(sizes) > 2 and max(sizes) <= 40_000
    tiny = make_shards(tmp_path / "tiny", count=3, bytes_per_shard=1)
    assert [shard.samples for shard in tiny.manifest.shards] == [1, 1, 1]
    for limit in ("images_per_shard", "bytes_per_shard"):
        with pytest.raises(UsageError, match="at least 1"):
            make_shards(tmp_path / limit, **{limit: 0})


def test_keys_are_plain_and_differ() -> None:
    names = ["a.b", "a_b", "a b", "ü", "x/y", "n" * 200, "m" + "n" * 200, "", "a_b_2"]
    keys = shard.unique_keys(names)
    assert len(set(keys)) == len(names)
    assert all(
        (len(key) < 90 and key.replace("_", "").replace("-", "").isalnum()) or key == "_"
        for key in keys[:-2]
    )
    assert keys[0] == "a_b" and "." not in "".join(keys)


def test_many_names_that_become_the_same_key_take_no_longer() -> None:
    """A hundred thousand names in another script: minutes, if each tried all numbers."""
    begun = time.process_time()
    keys = shard.unique_keys([chr(0x4E00 + n % 20000) for n in range(100_000)])
    assert keys[0] == "_" and keys[-1] == "__100000" and len(set(keys)) == 100_000
    assert time.process_time() - begun < 10


def test_a_finished_folder_is_not_overwritten(tmp_path: Path) -> None:
    make_shards(tmp_path / "train")
    before = content(tmp_path)
    with pytest.raises(UsageError, match="holds finished shards"):
        make_shards(tmp_path / "train", seed=1)
    assert content(tmp_path) == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UsageError, match=r"is not empty \(thesis.txt\)"):
        make_shards(tmp_path)
    assert content(tmp_path) == {"thesis.txt": b"irreplaceable"}


def test_an_interrupted_run_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(make_shards(tmp_path / "whole").path)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard.Writer, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            make_shards(tmp_path / "train")
    assert any((tmp_path / "train").glob("*.partial"))
    with pytest.raises(UserError, match="cut short"):
        ShardFolder.open(tmp_path / "train")
    assert content(make_shards(tmp_path / "train").path) == whole


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/train cannot be written"):
        make_shards(tmp_path / "file" / "train")


def test_no_usable_image_is_an_error_with_reasons(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable image (.|\n)*a.jpg: empty file"):
        run(folder, "--root", tmp_path / "in", "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_tree_is_labelled_by_its_first_level(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number, name in enumerate(("b/x.y.jpg", "a/deep/z.png", "a/z.jpg", "top.jpg", "b/x_y.jpg")):
        save(root / name, number)
    (root / "empty").mkdir()
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("ref")
    (root / "b" / "readme.txt").write_text("hello")
    Image.fromarray(image(7)).save(root / "a" / "photo.bmp")
    run(folder, "--root", root, "--out", tmp_path / "out")
    shards = ShardFolder.open(tmp_path / "out")
    assert shards.classes == ("a", "b", "empty")
    found = samples(shards)
    assert {key: label for key, (_, label) in found.items()} == {
        "a_deep_z": 0,
        "a_photo": 0,
        "a_z": 0,
        "b_x_y": 1,
        "b_x_y_2": 1,
        "top": -1,
    }
    assert (
        np.array_equal(pixels(found["a_photo"][0])[0], image(7))
        and found["a_photo"][0][:4] == b"\x89PNG"
    )
    assert rejected(tmp_path / "out") == {
        ".git/HEAD": "hidden file",
        "b/readme.txt": NO_IMAGE,
        "empty/": "class folder without images",
    }
    paths = [str(path) for path in (tmp_path / "out").glob("*.tar")]
    sources = {
        json.loads(s["json"])["source"] for s in webdataset.WebDataset(paths, shardshuffle=False)
    }
    assert sources == {
        "b/x.y.jpg",
        "a/deep/z.png",
        "a/z.jpg",
        "top.jpg",
        "b/x_y.jpg",
        "a/photo.bmp",
    }


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "in" / f"{number}.jpg", number)
    run(folder, "--root", tmp_path / "in", "--out", tmp_path / "out")
    shards = ShardFolder.open(tmp_path / "out")
    assert shards.labels.tolist() == [-1] * 3 and shards.classes == ()
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert not [name for name in tar.getnames() if name.endswith(".cls")]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.jpg", 0)
    save(tmp_path / "in" / "own" / "b.jpg", 1)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "own" / "loop").symlink_to(tmp_path / "in")
    run(folder, "--root", tmp_path / "in", "--out", tmp_path / "out")
    assert sorted(samples(ShardFolder.open(tmp_path / "out"))) == ["linked_a", "own_b"]
    reason = "a link to a folder that is read elsewhere"
    assert rejected(tmp_path / "out") == {"own/loop/": reason}


def test_what_cannot_be_read_is_listed(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.jpg", 0)
    (tmp_path / "in" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "in" / "pipe.jpg")
    with open(tmp_path / "in" / "film.jpg", "wb") as file:
        file.truncate(3_000_000_000)  # takes no place on the disk
    run(folder, "--root", tmp_path / "in", "--out", tmp_path / "out")
    assert rejected(tmp_path / "out") == {
        "gone.jpg": "unreadable file: No such file or directory",
        "pipe.jpg": "not a regular file",
        "film.jpg": f"too large: more than {LARGEST_IMAGE} bytes",
    }


def test_a_folder_that_cannot_be_read_is_listed(tmp_path: Path) -> None:
    """By a process without root's right to read everything."""
    save(tmp_path / "in" / "a" / "a.jpg", 0)
    for name, mode in (("closed", 0o000), ("names_only", 0o444)):
        save(tmp_path / "in" / name / "x.jpg", 1)
        (tmp_path / "in" / name).chmod(mode)
    code = (
        "import ctypes, sys; from data_tools import folder; from tests.support.shards import run\n"
        "header, none = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()\n"
        "assert not ctypes.CDLL(None).capset(header, none)  # gives up what root may do\n"
        "run(folder, '--root', sys.argv[1] + '/in', '--out', sys.argv[1] + '/out')\n"
    )
    try:
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    finally:
        for name in ("closed", "names_only"):
            (tmp_path / "in" / name).chmod(0o755)
    assert rejected(tmp_path / "out") == {
        "closed/": "unreadable folder: Permission denied",
        "names_only/x.jpg": "unreadable file: Permission denied",
    }


def test_what_a_camera_writes_stays_as_it_is(tmp_path: Path) -> None:
    """MPO: JPEGs one behind another, of which the first is taken."""
    (tmp_path / "in").mkdir()
    two = [Image.fromarray(image(number)) for number in range(2)]
    two[0].save(tmp_path / "in" / "a.jpg", "MPO", save_all=True, append_images=two[1:])
    run(folder, "--root", tmp_path / "in", "--out", tmp_path / "out")
    shards = ShardFolder.open(tmp_path / "out")
    assert shards.read(0) == (tmp_path / "in" / "a.jpg").read_bytes()
    assert np.abs(pixels(shards.read(0))[0].astype(int) - image(0)).mean() < 5


def test_a_full_disk_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    code = (
        "import resource, sys, pathlib, tests.support.shards as made\n"
        "from poa_ds.system.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "try: made.make_shards(pathlib.Path(sys.argv[1]))\n"
        "except UserError as error: print(error)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "x")]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert found.stdout == f"{tmp_path / 'x'} cannot be written: File too large\n"
    assert not (tmp_path / "x" / "dataset.json").exists()


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seeds_outside_the_range_are_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(UsageError, match=f"--seed {seed}: not in 0 .. {(1 << 63) - 1}"):
        make_shards(tmp_path / "x", seed=seed)


def test_a_missing_root_and_an_out_inside_it_are_refused(tmp_path: Path) -> None:
    for module in (folder, imagenet):
        with pytest.raises(UsageError, match=r"--root .* no such folder"):
            run(module, "--root", tmp_path / "nowhere", "--out", tmp_path / "out")
        with pytest.raises(UsageError, match="lies inside --root"):
            run(module, "--root", tmp_path, "--out", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no folders named like n01440764"):
        run(imagenet, "--root", tmp_path / "in", "--out", tmp_path / "out")


def test_the_tools_do_not_load_torch() -> None:
    names = ("shard", "photos", "imagenet", "folder", "listed", "cifar10", "check", "foreign")
    code = "".join(f"import data_tools.{name}\n" for name in names) + "import sys\n"
    code += "print(*sorted({'torch', 'torchvision', 'webdataset'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


def test_the_summary_names_every_reason(tmp_path: Path) -> None:
    lost = [Rejected("a", "empty file"), Rejected("b", "undecodable image: cut")]
    made = shard.write(
        tmp_path / "x",
        [Sample("k", "k", png(image(0)))],
        classes=(),
        rejected=lost,
        tool="test",
        args=options(),
        source="test",
    )
    assert "1 images, 1 shards" in str(made)
    assert "2 rejected (1 x empty file, 1 x undecodable image)" in str(made)
    assert str(tmp_path / "x" / "rejected.jsonl") in str(made)
