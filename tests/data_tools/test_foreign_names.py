"""Tars of other tools: what names of members say about classes, images and leftovers."""

from pathlib import Path

import pytest

from data_tools import check, foreign
from poa_ds.data.image.pixels import png
from poa_ds.data.store.index import ShardFolder
from poa_ds.system.errors import UsageError, UserError
from tests.support.shards import add_tar, image, run, samples


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
