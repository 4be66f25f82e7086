"""Images where they lie: the same batches as from their shards, and what changes is noticed."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import folder, listed
from poa_ds.data.loader import slot_batches
from poa_ds.data.places import open_folder, open_training
from poa_ds.data.store import loose
from poa_ds.data.store.index import SampleError, ShardFolder
from poa_ds.data.store.loose import LooseFolder
from poa_ds.recipe.tree import Data
from poa_ds.system.errors import UsageError, UserError
from tests.data.test_loader import SPEC, same, take
from tests.support.shards import image, run, save

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
SLOTS = 4
SPECIFICATION = replace(SPEC, slots=SLOTS, images_per_slot=3, seed=7)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """21 images of several formats in two classes, one on two levels, and what is no image."""
    root = tmp_path / "mine"
    for number in range(9):
        save(root / "bee" / f"b{number}.jpg", number)
        save(root / "ant" / ("deep" if number % 2 else ".") / f"a{number}.png", 20 + number)
    for number, name in enumerate(("x.webp", "y.gif", "z.bmp")):
        Image.fromarray(image(40 + number)).save(root / "bee" / name)
    (root / "none").mkdir()
    (root / "bee" / "notes.txt").write_text("no image")
    (root / "bee" / ".hidden.jpg").write_bytes((root / "bee" / "b0.jpg").read_bytes())
    return root


def batches(images: ShardFolder, world: int, workers: int, first: int = 0, **changed: object):
    """Of two steps, those of all slots, as `world` ranks have them."""
    spec, own = replace(SPECIFICATION, **changed), SLOTS // world
    found = [
        take(slot_batches(spec, images, rank=rank, world=world, first_step=first, workers=workers),
             2 * own)
        for rank in range(world)
    ]  # fmt: skip
    return [batch for step in (0, 1) for own_ in found for batch in own_[step * own :][:own]]


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_batches_are_those_of_the_shards_on_any_ranks(tree: Path, tmp_path: Path, kind: str):
    if kind == "folder":
        place = tree
        run(folder, "--root", tree, "--out", tmp_path / "shards", "--workers", 1)
    else:
        names = [path for path in sorted(tree.rglob("*")) if path.is_file()][::-1]
        place = tmp_path / "images.txt"
        place.write_text(
            "".join(f"{path.relative_to(tmp_path)}\t{path.parent.name}\n" for path in names)
        )
        run(listed, "--list", place, "--out", tmp_path / "shards", "--workers", 1)
    packed = ShardFolder.open(tmp_path / "shards")
    loose_ = open_folder(str(place), Data(), tmp_path / "kept")
    assert isinstance(loose_, LooseFolder)
    assert len(loose_) == len(packed) and loose_.classes == packed.classes
    assert loose_.labels.tolist() == packed.labels.tolist()
    expected = batches(packed, 1, 0)
    assert any(int(batch.labels.max()) > 0 for batch in expected)
    for world, workers in ((1, 0), (2, 0), (4, 0), (1, 2)):
        assert all(map(same, batches(loose_, world, workers), expected))
    blocks = batches(packed, 1, 0, block_shards=2)
    assert all(map(same, batches(loose_, 2, 0, block_shards=2), blocks))
    assert all(map(same, batches(loose_, 2, 0, first=1), batches(packed, 1, 0, first=1)))


def test_files_are_read_once_and_the_index_counts_until_one_changes(tree: Path, tmp_path: Path):
    first = LooseFolder.at(tree, tmp_path / "kept")
    opened, before = [], loose._row
    try:
        loose._row = lambda path, **options: opened.append(path) or before(path, **options)
        again = LooseFolder.at(tree, tmp_path / "kept")
        assert not opened and again.hash == first.hash and again.kept == first.kept
        os.utime(tree / "bee" / "b1.jpg", ns=(5, 5))  # copied: the same content
        touched = LooseFolder.at(tree, tmp_path / "kept")
        assert len(opened) == 22 and touched.hash == first.hash and touched.kept != first.kept
    finally:
        loose._row = before
    assert first.changes_since(touched.hash) == ""
    (tree / "bee" / "b1.jpg").unlink()
    (tree / "bee" / "b2.jpg").rename(tree / "bee" / "zz.jpg")
    save(tree / "bee" / "b3.jpg", 77)
    now = LooseFolder.at(tree, tmp_path / "kept")
    assert now.hash != first.hash
    assert now.changes_since(first.hash) == (
        "1 added (bee/zz.jpg), 2 removed (bee/b1.jpg, ...), 1 changed (bee/b3.jpg)"
    )
    assert now.changes_since("0" * 64) == ""


def test_labels_and_the_files_passed_over_are_those_of_the_shards(tree: Path, tmp_path: Path):
    run(folder, "--root", tree, "--out", tmp_path / "shards", "--workers", 1)
    found = LooseFolder.at(tree, tmp_path / "kept")
    assert found.classes == ("ant", "bee", "none")
    for sample in range(len(found)):
        assert found.classes[found.label(sample)] == found.name(sample).split("/")[0]
        assert found.read(sample) == (tree / found.name(sample)).read_bytes()
    rejected = (found.kept / "rejected.jsonl").read_text().splitlines()
    shards = (tmp_path / "shards" / "rejected.jsonl").read_text().splitlines()
    packed = [line for line in shards if "class folder without images" not in line]
    assert sorted(map(str, map(json.loads, rejected))) == sorted(map(str, map(json.loads, packed)))


def test_a_changed_or_missing_file_is_damage_like_any_other(tree: Path, tmp_path: Path):
    found = LooseFolder.at(tree, None)
    numbers = {found.name(sample): sample for sample in range(len(found))}
    path = tree / "bee" / "b4.jpg"
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    (tree / "bee" / "b5.jpg").unlink()
    save(tree / "bee" / "b6.jpg", 5)
    os.truncate(tree / "bee" / "b7.jpg", 100)
    for name, cause in (
        ("b4.jpg", "changed: its bytes do not fit the crc32 of the index"),
        ("b5.jpg", "unreadable file: No such file or directory"),
        ("b7.jpg", "has 100 bytes, "),
    ):
        with pytest.raises(SampleError, match=f"mine, sample bee/{name}: {cause}"):
            found.read(numbers[f"bee/{name}"])
    with pytest.raises(SampleError, match=r"sample bee/b"):
        batches(found, 1, 0, on_error="raise")
    replaced = batches(found, 1, 0, on_error="replace", max_bad_fraction=1.0)
    assert {key for batch in replaced for _, key, _ in batch.bad} >= {"bee/b5.jpg", "bee/b7.jpg"}
    assert all(map(same, batches(found, 2, 0, on_error="replace", max_bad_fraction=1.0), replaced))


@pytest.mark.parametrize("kept", [True, False])
def test_a_pickled_folder_reads(tree: Path, tmp_path: Path, kept: bool):
    found = LooseFolder.at(tree, tmp_path / "kept" if kept else None)
    packed = pickle.dumps(found)
    assert not kept or len(packed) < 1000
    again = pickle.loads(packed)
    assert [again.read(n) for n in range(len(again))] == [found.read(n) for n in range(len(found))]
    assert again.labels.tolist() == found.labels.tolist() and again.hash == found.hash


def _index(place: Path, cache: Path, results: multiprocessing.Queue) -> None:
    count, before = [0], loose._row

    def counted(path: Path, **options):
        count[0] += 1
        return before(path, **options)

    loose._row = counted
    LooseFolder.at(place, cache)
    results.put(count[0])


def test_of_several_processes_one_reads_the_files(tree: Path, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    made = [
        context.Process(target=_index, args=(tree, tmp_path / "kept", results)) for _ in range(3)
    ]
    for process in made:
        process.start()
    assert sorted(results.get() for _ in made) == [0, 0, 22]
    for process in made:
        process.join()
    assert not [path for path in (tmp_path / "kept").iterdir() if "indexing" in path.name]


def test_what_cannot_be_read_as_images_says_why(tree: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="lies inside"):
        LooseFolder.at(tree, tree / "run" / "images")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(
        UserError, match=r"no image and no dataset\.json in it(.|\n)*a\.txt: not an"
    ):
        open_folder(str(tmp_path / "texts"), Data())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty: it is not a folder of shards"):
        open_folder(str(tmp_path / "empty"), Data())
    with pytest.raises(UserError, match="no such folder"):
        open_folder(str(tmp_path / "nowhere"), Data())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"for indexes of images, cannot be used: Not a directory"):
        open_folder(str(tree), Data(cache=str(tmp_path / "file" / "cache")))


def test_an_index_that_another_process_publishes_first_is_no_error(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no lock holds, as on some network disks: both index, one is first."""
    publish = loose.publish_folder

    def late(folder: Path, kept: Path) -> None:
        shutil.copytree(folder, kept)
        publish(folder, kept)

    monkeypatch.setattr(loose, "publish_folder", late)
    found = LooseFolder.at(tree, tmp_path / "cache")
    assert len(found) and found.read(0)


def test_a_large_file_that_is_no_image_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "film").write_bytes(b"no image")
    os.truncate(tmp_path / "film", 1 << 30)
    tracemalloc.start()
    with pytest.raises(UserError, match="poa-ds index"):
        open_folder(str(tmp_path), Data())
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


def test_where_nothing_can_be_kept_the_index_is_in_memory(tree: Path, tmp_path: Path):
    assert open_training(Data(train=str(tree))).kept is None
    assert open_training(Data(train=str(tree)), tmp_path / "run").kept.parent == tmp_path / "run"
    asked = Data(train=str(tree), cache=str(tmp_path / "cache"))
    assert open_training(asked, tmp_path / "run").kept.parent == tmp_path / "cache"


def test_names_of_any_bytes_are_read(tmp_path: Path):
    content = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(content, "PNG")
    for name in (b"a\nb.png", b"\xff\xfe.png", "ü — 図.png".encode(), b" .png"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(content.getvalue())
    found = LooseFolder.at(tmp_path, None)
    assert len(found) == 4 and {found.read(n) for n in range(4)} == {content.getvalue()}
