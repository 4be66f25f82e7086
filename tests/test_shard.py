"""Writing shards: the same bytes each time, and no file is lost without a reason."""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_tools import cifar10, folder, imagenet, photos, shard
from poa_ds.data.index import ShardFolder
from poa_ds.data.pixels import pixels, png
from poa_ds.errors import UsageError, UserError
from tests.conftest import shared
from tests.made_shards import image, make_shards, options

SYNSETS = ("n01440764", "n02102040", "n02979186")


def run(module: ModuleType, *words: object) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(word) for word in words]))


def content(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def rejected(folder: Path) -> dict[str, str]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return {item["file"]: item["reason"] for item in map(json.loads, lines)}


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image(number)).save(path, "JPEG" if path.suffix != ".png" else "PNG")


def samples(shards: ShardFolder) -> dict[str, tuple[bytes, int]]:
    return {shards.key(i): (shards.read(i), int(shards.labels[i])) for i in range(len(shards))}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ImageNet-like tree and the folder of trouble."""
    target = tmp_path_factory.mktemp("unpacked")
    for name in ("imagenet_mini.tar", "imagenet_quirks.tar"):
        with tarfile.open(shared(f"data/{name}")) as tar:
            tar.extractall(target, filter="data")
    return target


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small ImageNet: nine training images, six validation images in a flat folder."""
    for number in range(9):
        synset = SYNSETS[number % 3]
        save(tmp_path / f"imagenet/train/{synset}/{synset}_{number}.JPEG", number)
    for number in range(6):
        save(tmp_path / f"imagenet/val/ILSVRC2012_val_{number:08d}.JPEG", number)
    return tmp_path / "imagenet"


# which synset the flat validation images belong to: not in the order of their names
TRUTH = {f"ILSVRC2012_val_{n:08d}": (2, 0, 1, 1, 0, 2)[n] for n in range(6)}
LABELS = {
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    + "".join(
        f"{k},{SYNSETS[v]} 0 0 9 9 {SYNSETS[v]} 1 1 5 5 \n" for k, v in reversed(TRUTH.items())
    ),
    "val_synset_labels.txt": "".join(f"{SYNSETS[v]}\n" for v in TRUTH.values()),
    "val_labels.txt": "".join(f"{k}.JPEG {v}\n" for k, v in TRUTH.items()),
    "val_origin.tsv": "".join(f"{k}.JPEG\t{SYNSETS[v]}\ttrain/x.JPEG\n" for k, v in TRUTH.items()),
}


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


def test_an_imagenet_tree_is_labelled_by_the_rank_of_its_synsets(
    tree: Path, tmp_path: Path
) -> None:
    (tree / "val_labels.txt").write_text(LABELS["val_labels.txt"])
    assert run(imagenet, "--root", tree, "--out", tmp_path / "out") == 0
    train, val = (ShardFolder.open(tmp_path / "out" / split) for split in ("train", "val"))
    assert train.classes == val.classes == SYNSETS
    expected = {
        path.stem: (path.read_bytes(), SYNSETS.index(path.parent.name))
        for path in tree.glob("train/*/*.JPEG")
    }
    assert samples(train) == expected and len(expected) == 9
    assert {key: label for key, (_, label) in samples(val).items()} == TRUTH


@pytest.mark.parametrize("name", LABELS)
def test_every_dialect_of_the_validation_labels(tree: Path, tmp_path: Path, name: str) -> None:
    for number, place in enumerate((tree / name, tree / "val" / name, tmp_path / "given.txt")):
        place.write_text(LABELS[name])
        given = ("--val-labels", place) if place.name == "given.txt" else ()
        run(imagenet, "--root", tree, "--out", tmp_path / f"out{number}", *given)
        val = ShardFolder.open(tmp_path / f"out{number}" / "val")
        assert {key: label for key, (_, label) in samples(val).items()} == TRUTH
        assert rejected(val.path) == {}
        place.unlink()


def test_validation_images_may_lie_in_synset_folders(tree: Path, tmp_path: Path) -> None:
    for stem, label in TRUTH.items():
        target = tree / "val" / SYNSETS[label] / f"{stem}.JPEG"
        target.parent.mkdir(exist_ok=True)
        shutil.move(tree / "val" / f"{stem}.JPEG", target)
    save(tree / "val/n99999999/x.JPEG", 0)
    run(imagenet, "--root", tree, "--out", tmp_path / "out")
    val = ShardFolder.open(tmp_path / "out" / "val")
    assert {key: label for key, (_, label) in samples(val).items()} == TRUTH
    assert rejected(val.path) == {
        "val/n99999999/x.JPEG": "synset without a folder in train: n99999999"
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file with its labels: name one with --val-labels"),
        (
            LABELS | {"val_labels.txt": LABELS["val_labels.txt"].replace(" 2", " 1")},
            "disagree about",
        ),
        ({"val_synset_labels.txt": "n01440764\n"}, "has 1 lines for 6 images"),
        ({"val_synset_labels.txt": "1\n" * 6}, "bare numbers"),
        ({"val_labels.txt": "a.JPEG 3\n"}, "is of class 3, which train/ does not have"),
        ({"val_origin.tsv": "a.JPEG n99999999\n"}, "is of class n99999999"),
        ({"val_labels.txt": "a.JPEG 0\nb\n"}, "cannot read the line 'b'"),
        ({"val_labels.txt": ""}, "is empty"),
    ],
)
def test_unusable_validation_labels_say_why(
    tree: Path, tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tree / name).write_text(text)
    with pytest.raises(UserError, match=message):
        run(imagenet, "--root", tree, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_and_labels_that_do_not_meet_are_listed(tree: Path, tmp_path: Path) -> None:
    lines = LABELS["val_labels.txt"].splitlines()
    (tree / "val_labels.txt").write_text("\n".join([*lines[1:], "elsewhere.JPEG 0"]))
    run(imagenet, "--root", tree, "--out", tmp_path / "out")
    assert rejected(tmp_path / "out" / "val") == {
        "val/ILSVRC2012_val_00000000.JPEG": "no label: not named in val_labels.txt",
        "val/elsewhere": "no such file: named in val_labels.txt",
    }


def test_the_mini_imagenet(unpacked: Path, tmp_path: Path) -> None:
    root = unpacked / "imagenet_mini"
    run(imagenet, "--root", root, "--out", tmp_path, "--images-per-shard", 1500)
    train, val = ShardFolder.open(tmp_path / "train"), ShardFolder.open(tmp_path / "val")
    assert (len(train), len(val)) == (3800, 1000)
    assert train.classes == tuple(sorted(path.name for path in (root / "train").iterdir()))
    for key, (_, label) in samples(train).items():
        (path,) = (root / "train" / train.classes[label]).glob(f"{key}.*")
        assert path.exists()
    rows = (line.split("\t") for line in (root / "val_origin.tsv").read_text().splitlines())
    truth = {name.removesuffix(".JPEG"): train.classes.index(synset) for name, synset, _ in rows}
    assert {key: label for key, (_, label) in samples(val).items()} == truth


def test_the_folder_of_trouble_is_used_or_listed(unpacked: Path, tmp_path: Path) -> None:
    root = unpacked / "imagenet_quirks"
    run(imagenet, "--root", root, "--out", tmp_path)
    shards = ShardFolder.open(tmp_path / "train")
    found, lost = samples(shards), rejected(tmp_path / "train")
    assert shards.classes == ("n01440764", "n01443537") and set(shards.labels) == {0}
    assert {name: reason.split(":")[0] for name, reason in lost.items()} == {
        "train/n01440764/._n01440764_11.JPEG": "hidden file",
        "train/n01440764/n01440764_4.JPEG": "undecodable image",
        "train/n01440764/n01440764_5.JPEG": "empty file",
        "train/n01440764/n01440764_6.JPEG": "not an image",
        "train/n01443537/": "class folder without images",
        "train/not_a_synset/a.b.c.JPEG": "not in a synset folder",
    }
    files = {path for path in root.rglob("*") if path.is_file()}
    used = {path for path in files if path.stem in found}
    assert used.isdisjoint(root.parent / name for name in lost)
    assert len(found) == len(used) and len(used) + len(lost) - 1 == len(files)
    for path in used:
        assert found[path.stem][0] == path.read_bytes()
        assert pixels(found[path.stem][0])[0].ndim == 3
    paths = [str(path) for path in (tmp_path / "train").glob("*.tar")]
    kinds = {
        s["__key__"]: set(s) & {"jpg", "png"}
        for s in webdataset.WebDataset(paths, shardshuffle=False)
    }
    assert kinds["n01440764_2"] == {"png"}  # a PNG called .JPEG
    assert kinds["n01440764_1"] == {"jpg"}  # CMYK


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
        "b/readme.txt": "not an image",
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


def test_a_missing_root_and_an_out_inside_it_are_refused(tmp_path: Path) -> None:
    for module in (folder, imagenet):
        with pytest.raises(UsageError, match=r"--root .* no such folder"):
            run(module, "--root", tmp_path / "nowhere", "--out", tmp_path / "out")
        with pytest.raises(UsageError, match="lies inside --root"):
            run(module, "--root", tmp_path, "--out", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no folders named like n01440764"):
        run(imagenet, "--root", tmp_path / "in", "--out", tmp_path / "out")


def test_photos_are_cut_from_separate_parts(tmp_path: Path) -> None:
    words = ("--train", 4, "--val", 3, "--size", 24, "--short-side", 96)
    run(photos, "--out", tmp_path / "a", *words)
    run(photos, "--out", tmp_path / "b", *words)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    train, val = ShardFolder.open(tmp_path / "a/train"), ShardFolder.open(tmp_path / "a/val")
    assert len(train.classes) == 19 and (len(train), len(val)) == (19 * 4, 19 * 3)
    assert np.bincount(train.labels).tolist() == [4] * 19
    astronaut = photos._pixels(photos.photographs()[0], 96, gray=False)
    border = int(astronaut.shape[1] * 0.7)
    for shards, part in ((train, astronaut[:, :border]), (val, astronaut[:, border:])):
        windows = np.lib.stride_tricks.sliding_window_view(part, (24, 24), axis=(0, 1))
        for sample in np.flatnonzero(shards.labels == 0):
            patch = pixels(shards.read(int(sample)))[0].transpose(2, 0, 1)
            assert (windows == patch).all((2, 3, 4)).any()


def test_grey_photos_have_equal_channels(tmp_path: Path) -> None:
    run(photos, "--out", tmp_path, "--train", 1, "--val", 1, "--gray")
    shards = ShardFolder.open(tmp_path / "train")
    for sample in range(len(shards)):
        patch = pixels(shards.read(sample))[0]
        assert (patch == patch[..., :1]).all()


@pytest.mark.parametrize("words", [("--size", 0), ("--size", 100), ("--train", 0)])
def test_impossible_patches_are_refused(tmp_path: Path, words: tuple) -> None:
    with pytest.raises(UsageError, match=words[0]):
        run(photos, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


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
    path.write_bytes(path.read_bytes()[:50_000])
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
    import pickle

    return pickle.dumps(value, protocol=2)


def test_a_missing_cifar_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        run(cifar10, "--source", tmp_path / "nowhere", "--out", tmp_path / "out")
    with pytest.raises(UserError, match=r"neither batches.meta nor train-\*.tar"):
        run(cifar10, "--source", tmp_path, "--out", tmp_path / "out")


def test_the_tools_do_not_load_torch() -> None:
    names = ("shard", "photos", "imagenet", "folder", "cifar10", "check")
    code = "".join(f"import data_tools.{name}\n" for name in names) + "import sys\n"
    code += "print(*sorted({'torch', 'torchvision', 'webdataset'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


def test_the_summary_names_every_reason(tmp_path: Path) -> None:
    lost = [shard.Rejected("a", "empty file"), shard.Rejected("b", "undecodable image: cut")]
    made = shard.write(
        tmp_path / "x",
        [shard.Sample("k", "k", png(image(0)))],
        classes=(),
        rejected=lost,
        args=options(),
        source="test",
    )
    assert "1 images, 1 shards" in str(made)
    assert "2 rejected (1 x empty file, 1 x undecodable image)" in str(made)
    assert str(tmp_path / "x" / "rejected.jsonl") in str(made)
