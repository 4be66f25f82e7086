"""Sources that are not trees: official archives, lists of paths, tars of other tools."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_tools import check, foreign, imagenet, listed
from poa_ds.data.image.opening import NO_IMAGE
from poa_ds.data.image.pixels import pixels, png
from poa_ds.data.store.index import ShardFolder
from poa_ds.system.errors import UsageError, UserError
from tests.support.shards import add, add_tar, content, image, rejected, run, samples, save

SYNSETS = ("n01440764", "n02102040", "n02979186")


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image(number)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def archived(tmp_path: Path) -> Path:
    """ImageNet as it is downloaded, and beside it the same images as a tree."""
    packed, tree = tmp_path / "packed", tmp_path / "tree"
    packed.mkdir()
    with tarfile.open(packed / imagenet.TRAIN, "w", format=tarfile.GNU_FORMAT) as outer:
        for rank in (1, 0, 2):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for number in range(4):
                    name = f"{SYNSETS[rank]}_{number}.JPEG"
                    found = jpeg(rank * 4 + number) if number else b"<html>"
                    add(tar, name, found)
                    path = tree / "train" / SYNSETS[rank] / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(found)
            add(outer, f"{SYNSETS[rank]}.tar", inner.getvalue())
        add(outer, "readme.txt", b"hello")
    (tree / "val").mkdir()
    with tarfile.open(packed / imagenet.VAL, "w") as tar:
        for number in range(3):
            name = f"ILSVRC2012_val_{number:08d}.JPEG"
            add(tar, name, jpeg(20 + number))
            (tree / "val" / name).write_bytes(jpeg(20 + number))
    for root in (packed, tree):
        labels = "".join(f"{SYNSETS[n]}\n" for n in (2, 0, 1))
        (root / "val_synset_labels.txt").write_text(labels)
    return packed


def test_official_archives_give_what_their_unpacked_tree_gives(
    archived: Path, tmp_path: Path
) -> None:
    for name in ("packed", "tree"):
        run(imagenet, "--root", tmp_path / name, "--out", tmp_path / "out" / name)
    for split, count in (("train", 9), ("val", 3)):
        packed, tree = (ShardFolder.open(tmp_path / "out" / n / split) for n in ("packed", "tree"))
        assert len(packed) == count and packed.classes == tree.classes == SYNSETS
        assert samples(packed) == samples(tree)
    assert rejected(tmp_path / "out/packed/train") == {
        "ILSVRC2012_img_train.tar/readme.txt": "not the tar of a synset",
        **{f"ILSVRC2012_img_train.tar/{name}.tar/{name}_0.JPEG": NO_IMAGE for name in SYNSETS},
    }


@pytest.mark.parametrize("place", [512 + 3, -15000])
def test_a_damaged_archive_is_named(archived: Path, tmp_path: Path, place: int) -> None:
    path = archived / imagenet.TRAIN
    found = bytearray(path.read_bytes())
    if place > 0:
        found[place] ^= 1  # header of an image in the first inner tar
    path.write_bytes(found if place > 0 else found[:place])
    with pytest.raises(UserError, match=r"img_train.tar.*(damaged tar header|cut short)"):
        run(imagenet, "--root", archived, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda inner: inner.__setitem__(slice(0, 512), bytes(512)), "something follows the end"),
        (lambda inner: inner.__delitem__(slice(512 * 3, None)), "cut short"),
        (lambda inner: inner.clear(), "cut short"),
    ],
)
def test_damage_of_one_class_is_not_taken_for_its_end(
    archived: Path, tmp_path: Path, edit: Callable[[bytearray], None], message: str
) -> None:
    """A hole in a disk reads as zeros, which end a tar; a cut tar would run on into the next."""
    path = archived / imagenet.TRAIN
    with tarfile.open(path) as tar:
        inner = {m.name: bytearray(tar.extractfile(m).read()) for m in tar}
    edit(inner[f"{SYNSETS[0]}.tar"])
    with tarfile.open(path, "w") as tar:
        for name, found in inner.items():
            add(tar, name, bytes(found))
    with pytest.raises(UserError, match=rf"{SYNSETS[0]}\.tar: .*{message}"):
        run(imagenet, "--root", archived, "--out", tmp_path / "out")


def test_a_list_of_paths(tmp_path: Path) -> None:
    for number, name in enumerate(("x/a.jpg", "b.v2.jpg", "ü c.jpg")):
        save(tmp_path / "in" / name, number)
    text = "x/a.jpg\tzebra\nb.v2.jpg\tant\n\nü c.jpg\nx/a.jpg\tant\nnowhere.jpg\n/\na\0\n"
    (tmp_path / "in" / "list.txt").write_text(text)
    run(listed, "--list", tmp_path / "in/list.txt", "--out", tmp_path / "out")
    shards = ShardFolder.open(tmp_path / "out")
    assert shards.classes == ("ant", "zebra")
    labels = {key: label for key, (_, label) in samples(shards).items()}
    assert labels == {"x_a": 1, "b_v2": 0, "__c": -1}
    tars = [str(path) for path in (tmp_path / "out").glob("*.tar")]
    notes = [json.loads(s["json"]) for s in webdataset.WebDataset(tars, shardshuffle=False)]
    assert sorted(note["source"] for note in notes) == ["b.v2.jpg", "x/a.jpg", "ü c.jpg"]
    assert rejected(tmp_path / "out") == {
        "x/a.jpg": "named twice: again in line 5",
        "nowhere.jpg": "unreadable file: No such file or directory",
        "/": "not a regular file",
        "a\0": "unreadable file: embedded null byte",
    }
    with pytest.raises(UsageError, match="no such file"):
        run(listed, "--list", tmp_path / "none.txt", "--out", tmp_path / "out2")


def test_images_are_made_smaller_on_request(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name, shape in (("wide", (60, 150)), ("tall", (90, 61)), ("thin", (3, 400))):
        Image.fromarray(image(0, *shape)).save(root / f"{name}.png")
    (root / "list.txt").write_text("wide.png\ntall.png\nthin.png\n")
    words = ("--list", root / "list.txt", "--short-side", 48, "--quality", 95)
    run(listed, *words, "--out", tmp_path / "out")
    found = {
        key: content for key, (content, _) in samples(ShardFolder.open(tmp_path / "out")).items()
    }
    assert pixels(found["wide"])[0].shape == (48, 120, 3) and pixels(found["wide"])[1] == "JPEG"
    assert pixels(found["tall"])[0].shape == (71, 48, 3)
    assert found["thin"] == (root / "thin.png").read_bytes()
    whole = Image.fromarray(image(0, 60, 150)).resize((120, 48), Image.Resampling.BICUBIC)
    assert np.abs(pixels(found["wide"])[0].astype(int) - np.asarray(whole)).mean() < 3


@pytest.fixture
def written_elsewhere(tmp_path: Path) -> Path:
    """Tars by webdataset's own writer, one in a sub-folder, with times and long names."""
    (tmp_path / "wds" / "part").mkdir(parents=True)
    for number, name in enumerate(("a.tar", "part/b.tar")):
        with webdataset.TarWriter(str(tmp_path / "wds" / name)) as writer:
            for place in range(5):
                key = f"{'long' * 30}/ü{place}" if place == 3 else f"k{place}"
                sample = {"__key__": key, "json": {"n": place}, "cls": place % 3}
                if place != 4:
                    sample["png"] = Image.fromarray(image(number * 5 + place))
                writer.write(sample)
    return tmp_path / "wds"


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_of_other_tools_get_an_index(
    written_elsewhere: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(written_elsewhere)
    assert run(foreign, written_elsewhere, "--workers", workers) == 0
    assert "8 images, 2 tars; 2 samples without an image" in capsys.readouterr().out
    shards = ShardFolder.open(written_elsewhere)
    for sample in range(8):
        tar, place = divmod(sample, 4)
        assert np.array_equal(pixels(shards.read(sample))[0], image(tar * 5 + place))
        assert shards.labels[sample] == place % 3
        assert shards.shard(sample) == ("a.tar", "part/b.tar")[tar]
    assert shards.classes == ("0", "1", "2")
    assert rejected(written_elsewhere) == {
        "a.tar, sample k4": "no image",
        "part/b.tar, sample k4": "no image",
    }
    assert run(check, written_elsewhere) == 0
    assert before.items() <= content(written_elsewhere).items()
    with pytest.raises(UsageError, match="exists: remove it"):
        run(foreign, written_elsewhere)


def test_pax_and_gnu_names_are_read(tmp_path: Path) -> None:
    name = "folder/" + "x" * 150 + ".png"
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        root = tmp_path / str(kind)
        root.mkdir()
        with tarfile.open(root / "x.tar", "w", format=kind) as tar:
            member = tarfile.TarInfo(name)
            member.mtime, member.size = 1.5, len(png(image(0)))
            tar.addfile(member, io.BytesIO(png(image(0))))
            add(tar, name.replace("png", "cls"), b"1")
        run(foreign, root)
        shards = ShardFolder.open(root)
        assert shards.read(0) == png(image(0)) and shards.labels.tolist() == [1]


def test_what_cannot_be_indexed_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no \.tar"):
        run(foreign, tmp_path)
    with pytest.raises(UsageError, match=r"names\.txt: no such file"):
        add_tar(tmp_path / "x.tar", {"a.jpg": b"1"})
        run(foreign, tmp_path, "--classes", tmp_path / "names.txt")
    (tmp_path / "unfinished.jsonl").touch()
    with pytest.raises(UserError, match="cut short; the same command continues it"):
        run(foreign, tmp_path)
    (tmp_path / "unfinished.jsonl").unlink()
    (tmp_path / "x.tar").unlink()
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match="is compressed"):
        run(foreign, tmp_path)
    (tmp_path / "x.tar.gz").unlink()
    for names, message in (
        ({"a.jpg": b"1", "a.png": b"1"}, "sample a has two images"),
        ({"a.jpg": b"1", "a.cls": b"cat"}, "'cat' is not in it, but a class"),
        ({"a.jpg": b"1", "a.cls": b"-7"}, "sample a: its class -7 is none"),
        ({"a.jpg": b"1", "a.cls": b"2000000000"}, "sample a: its class 2000000000 is none"),
        ({"a.jpg": b"1", "a.cls": b"9" * 400}, "is neither a number nor a name"),
        ({"a.jpg": b"1", "a.cls": b"a\nb"}, "is neither a number nor a name"),
        ({"a.jpg": b"1", "a.cls": b"9" * 5000}, r"a\.cls has 5000 bytes, of 512 at most"),
        ({"a.txt": b"1"}, "no image in 1 tars"),
        ({"a.jpg": b"1", "a.cls": b"7"}, "2 names, but labels up to 7"),
    ):
        add_tar(tmp_path / "x.tar", names)
        (tmp_path / "names.txt").write_text("ant\nbee\n")
        with pytest.raises(UserError, match=message):
            run(foreign, tmp_path, "--classes", tmp_path / "names.txt")
        assert not (tmp_path / "dataset.json").exists()


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(UserError, match=r"x\.tar is a pipe, not a regular file"):
        run(foreign, tmp_path)
