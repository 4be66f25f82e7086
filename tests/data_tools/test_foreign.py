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
from tests.support.shards import content, image, rejected, run, samples, save

SYNSETS = ("n01440764", "n02102040", "n02979186")


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image(number)).save(file, "JPEG")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, found: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(found)
    tar.addfile(member, io.BytesIO(found))


def add_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, found in members.items():
            add(tar, name, found)


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


def indexed(folder: Path, members: dict[str, bytes], *words: object) -> ShardFolder:
    """The folder of one tar with these members, after `poa-ds index` and `poa-ds check`."""
    folder.mkdir(exist_ok=True)
    add_tar(folder / "x.tar", members)
    assert run(foreign, folder, *words) == 0 and run(check, folder, "--workers", 0) == 0
    return ShardFolder.open(folder)


def labelled(*said: str) -> dict[str, bytes]:
    """Members of a sample for each content of a .cls."""
    found = {}
    for number, text in enumerate(said):
        found |= {f"k{number}.png": png(image(number)), f"k{number}.cls": text.encode()}
    return found


@pytest.mark.parametrize(
    ("said", "classes", "labels"),
    [
        (("0", "-1", "1", "", " 1\n"), ("0", "1"), [0, -1, 1, -1, 1]),
        (("2", "0", "2"), ("0", "1", "2"), [2, 0, 2]),  # as many numbers as images: kept
        (("70000", "9", "0012", "-1"), ("9", "12", "70000"), [2, 0, 1, -1]),
        (("n02102040", "n01440764", "-1"), ("n01440764", "n02102040"), [1, 0, -1]),
        (("great white shark", "3", "bee"), ("3", "bee", "great white shark"), [2, 0, 1]),
        (("-1",), (), [-1]),
    ],
)
def test_a_class_is_a_number_a_name_or_absent(
    tmp_path: Path, said: tuple[str, ...], classes: tuple[str, ...] | None, labels: list[int]
) -> None:
    shards = indexed(tmp_path, labelled(*said))
    assert shards.labels.tolist() == labels
    names = {
        label: text.strip().lstrip("0") or "0" for label, text in zip(labels, said, strict=True)
    }
    assert shards.classes == classes if classes is not None else True
    assert all(shards.classes[label] == names[label] for label in labels if label >= 0)


def test_names_of_classes_are_found_in_the_file_of_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\nant\nbee\n")
    words = ("--classes", tmp_path / "names.txt")
    shards = indexed(tmp_path / "x", labelled("bee", "cat", "-1"), *words)
    assert shards.classes == ("cat", "ant", "bee") and shards.labels.tolist() == [2, 0, -1]
    shards = indexed(tmp_path / "y", labelled("2", "0", "-1"), *words)
    assert shards.classes == ("cat", "ant", "bee") and shards.labels.tolist() == [2, 0, -1]


def test_an_altered_class_is_noticed_however_classes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indexed(tmp_path, labelled("bee", "cat"))
    for said in (("bee", "bee"), ("bee", "dog")):
        add_tar(tmp_path / "x.tar", labelled(*said))
        assert run(check, tmp_path, "--no-decode") == 1
    assert "the class 'dog' is none of the data set's" in capsys.readouterr().out


def test_labels_can_be_left_out(tmp_path: Path) -> None:
    shards = indexed(tmp_path, labelled("2000000000", "a\nb"), "--no-labels")
    assert shards.labels.tolist() == [-1, -1] and shards.classes == ()
    with pytest.raises(UsageError, match="contradict"):
        run(foreign, tmp_path, "--no-labels", "--classes", tmp_path)


def test_the_image_of_a_sample_is_chosen_by_its_extension(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {}
    for number in range(3):
        members |= {
            f"k{number}.input.png": png(image(number)),
            f"k{number}.target.png": png(image(9)),
        }
        members |= {f"k{number}.cls": b"0"}
    add_tar(tmp_path / "x.tar", members)
    with pytest.raises(UserError) as caught:
        run(foreign, tmp_path)
    assert "no image in 1 tars; names end in input.png (3), target.png (3), cls (3)" in str(
        caught.value
    )
    assert "`poa-ds index --image-ext input.png` takes such for images" in str(caught.value)
    shards = indexed(tmp_path, members, "--image-ext", ".INPUT.png")
    assert samples(shards) == {f"k{n}": (png(image(n)), 0) for n in range(3)}
    with pytest.raises(UsageError, match="--image-ext"):
        run(foreign, tmp_path, "--image-ext", "jpg,,")


def test_names_with_dots_are_cut_at_the_last_one_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("2024.01.05 a", "2024.01.05 b", "dir.x/plain")
    members = {}
    for number, name in enumerate(names):
        members |= {f"{name}.png": png(image(number)), f"{name}.cls": b"%d" % number}
    indexed(tmp_path, members)
    printed = capsys.readouterr().out
    assert "1 samples without an image" in printed and "names end in 01.05 a.png (1), " in printed
    assert "`--last-dot` cuts names at their last dot" in printed
    (tmp_path / "dataset.json").unlink()
    shards = indexed(tmp_path, members, "--last-dot")
    assert samples(shards) == {name: (png(image(n)), n) for n, name in enumerate(names)}


MAC = {
    "._k0.png": b"\0\x05\x16\7",
    "k0.png": png(image(0)),
    "._k0.cls": b"\0\x05\x16\7",
    "k0.cls": b"0",
    ".DS_Store": b"Bud1",
    "__MACOSX/._k0.png": b"\0\x05\x16\7",
    "Thumbs.db": b"\xd0\xcf",
    "sub/k1.png": png(image(1)),
}


def test_leftovers_of_file_managers_are_passed_over_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("._x.tar", ".DS_Store", "__MACOSX/x.tar"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"Bud1")
    shards = indexed(tmp_path / "d", MAC)
    assert samples(shards) == {"k0": (png(image(0)), 0), "sub/k1": (png(image(1)), -1)}
    printed = capsys.readouterr().out
    assert "2 images, 1 tars; every sample has one; 1 without a class; 8 leftovers of" in printed


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(UserError, match=r"x\.tar is a pipe, not a regular file"):
        run(foreign, tmp_path)
