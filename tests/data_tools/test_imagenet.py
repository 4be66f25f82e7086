"""ImageNet trees become shards with the right labels, whatever is wrong with them."""

import shutil
import tarfile
from pathlib import Path

import pytest
import webdataset

from data_tools import imagenet
from poa_ds.data.image.opening import NO_IMAGE
from poa_ds.data.image.pixels import pixels
from poa_ds.data.store.index import ShardFolder
from poa_ds.system.errors import UserError
from tests.conftest import shared
from tests.support.shards import rejected, run, samples, save

SYNSETS = ("n01440764", "n02102040", "n02979186")
# which synset the flat validation images belong to: not in the order of their names
TRUTH = {f"ILSVRC2012_val_{n:08d}": (2, 0, 1, 1, 0, 0)[n] for n in range(6)}


LABELS = {
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    + "".join(
        f"{k},{SYNSETS[v]} 0 0 9 9 {SYNSETS[v]} 1 1 5 5 \n" for k, v in reversed(TRUTH.items())
    ),
    "val_synset_labels.txt": "".join(f"{SYNSETS[v]}\n" for v in TRUTH.values()),
    "val_labels.txt": "".join(f"{k}.JPEG {v}\n" for k, v in TRUTH.items()),
    "val_origin.tsv": "".join(f"{k}.JPEG\t{SYNSETS[v]}\ttrain/x.JPEG\n" for k, v in TRUTH.items()),
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ImageNet-like tree (a fifth of its training images) and the folder of trouble."""
    target = tmp_path_factory.mktemp("unpacked")
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on
    for name, stride in (("imagenet_mini.tar", 5), ("imagenet_quirks.tar", 1)):
        with tarfile.open(shared(f"data/{name}")) as tar:
            train = [member for member in tar if member.isfile() and "/train/" in member.name]
            others = [member for member in tar if member not in train]
            tar.extractall(target, others + train[::stride], **safe)
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
        ({"val_labels.txt": "a.JPEG 0\na.JPEG 1\n"}, "names a twice: of class 0 and 1"),
        ({"val_labels.txt": "\udcff"}, "val_labels.txt cannot be read: 'utf-8' codec"),
    ],
)
def test_unusable_validation_labels_say_why(
    tree: Path, tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tree / name).write_text(text, errors="surrogateescape")
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
    run(imagenet, "--root", root, "--out", tmp_path, "--images-per-shard", 300)
    train, val = ShardFolder.open(tmp_path / "train"), ShardFolder.open(tmp_path / "val")
    assert (len(train), len(val)) == (760, 1000)
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
        "train/n01440764/n01440764_6.JPEG": NO_IMAGE,
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
