"""Shard folders: what is read is what was written, and damage has a name."""

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from poa_ds.data.image.pixels import png
from poa_ds.data.store.index import SampleError, ShardFolder
from poa_ds.data.store.scan import index_tar, split_name
from poa_ds.system.errors import UserError
from tests.support.shards import CLASSES, image, make_shards


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "train"
    make_shards(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "train"))


def test_samples_are_those_that_were_written(made: Path) -> None:
    shards = ShardFolder.open(made)
    assert len(shards) == 30 and shards.classes == CLASSES
    numbers = [int(shards.key(sample).removeprefix("image_")) for sample in range(30)]
    assert sorted(numbers) == list(range(30)) != numbers
    for sample, number in enumerate(numbers):
        assert shards.read(sample) == png(image(number))
        assert shards.labels[sample] == number % 3


def test_tarfile_and_webdataset_read_the_same_samples(made: Path) -> None:
    shards = ShardFolder.open(made)
    own = {
        shards.key(i): (shards.read(i), str(shards.labels[i]).encode()) for i in range(len(shards))
    }
    paths = sorted(str(path) for path in made.glob("*.tar"))
    streamed = {
        sample["__key__"]: (sample["png"], sample["cls"])
        for sample in webdataset.WebDataset(paths, shardshuffle=False)
    }
    unpacked = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                unpacked.setdefault(Path(member.name).stem, []).append(
                    tar.extractfile(member).read()
                )
    assert streamed == own
    assert {key: tuple(values) for key, values in unpacked.items()} == own


def test_the_hash_is_that_of_the_index_file(made: Path) -> None:
    expected = hashlib.sha256((made / "index.npy").read_bytes()).hexdigest()
    assert ShardFolder.open(made).hash == expected


def test_a_tar_alone_gives_the_same_index_rows(made: Path) -> None:
    shards = ShardFolder.open(made)
    rows = np.concatenate([index_tar(made / shard.file) for shard in shards.manifest.shards])
    assert rows.dtype == shards.index.dtype and np.array_equal(rows, shards.index)
    assert rows.itemsize == 20


def test_a_flipped_bit_of_an_image_names_shard_key_and_cause(folder: Path) -> None:
    shards = ShardFolder.open(folder)
    sample = 11
    path, row = folder / shards.shard(sample), shards.index[sample]
    for place in (0, int(row["size"]) // 2, int(row["size"]) - 1):
        content = bytearray(path.read_bytes())
        content[int(row["offset"]) + place] ^= 4
        damaged = folder / "damaged"
        damaged.write_bytes(content)
        os.replace(damaged, path)
        with pytest.raises(SampleError, match="crc32") as caught:
            ShardFolder.open(folder).read(sample)
        assert caught.value.shard == str(path) and caught.value.key == shards.key(sample)
        assert str(path) in str(caught.value) and shards.key(sample) in str(caught.value)


def test_every_bit_of_a_header_matters_to_index_tar(folder: Path) -> None:
    """webdataset takes a damaged header for the end of the archive and loses the rest."""
    path = folder / "shard-000001.tar"
    whole, rows = path.read_bytes(), index_tar(path)
    start = int(rows[3]["offset"]) - 512
    for place in range(0, 512, 7):
        content = bytearray(whole)
        content[start + place] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=str(path)):
            index_tar(path)


def test_a_tar_cut_anywhere_is_noticed(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    whole = path.read_bytes()
    last = index_tar(path)[-1]
    end = int(last["offset"] + last["size"])
    for length in [*range(0, end, 512), 700, end - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut short"):
            index_tar(path)
        with pytest.raises(UserError, match=f"shard-000000.tar has {length} bytes instead of"):
            ShardFolder.open(folder)


def test_something_behind_the_end_of_a_tar_is_noticed(folder: Path) -> None:
    """Such as the second of two concatenated tars, which no reader would look at."""
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes() + (folder / "shard-000001.tar").read_bytes())
    with pytest.raises(UserError, match="something follows the end mark"):
        index_tar(path)


def test_other_kinds_of_members_are_refused_by_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"a\.jpg is a symbolic link: only plain files are read"):
        index_tar(tmp_path / "x.tar")


def test_samples_of_a_tar_must_be_whole_and_stand_together(tmp_path: Path) -> None:
    for names, message in (
        (("a.jpg", "b.jpg", "a.cls"), "members of a do not stand together"),
        (("a.jpg", "b.cls"), "1 samples without an image, e.g. b"),
    ):
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 1
                tar.addfile(member, io.BytesIO(b"1"))
        with pytest.raises(UserError, match=message):
            index_tar(tmp_path / "x.tar")


def test_a_shard_that_shrinks_later_is_noticed_while_reading(folder: Path) -> None:
    shards = ShardFolder.open(folder)
    os.truncate(folder / shards.shard(0), int(shards.index[0]["offset"]) + 5)
    with pytest.raises(SampleError, match=r"ends after 5 of \d+ bytes"):
        shards.read(0)


def test_swapped_shards_are_named_before_anything_is_read(folder: Path) -> None:
    first, second = folder / "shard-000000.tar", folder / "shard-000001.tar"
    assert first.stat().st_size == second.stat().st_size
    for source, target in ((first, folder / "x"), (second, first), (folder / "x", second)):
        source.rename(target)
    with pytest.raises(UserError) as caught:
        ShardFolder.open(folder)
    for path in (first, second):
        assert f"{path} is damaged, or another shard has its name" in str(caught.value)


def test_missing_shards_are_all_named_before_anything_is_read(folder: Path) -> None:
    (folder / "shard-000000.tar").unlink()
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(UserError) as caught:
        ShardFolder.open(folder)
    assert "shard-000000.tar is missing (8 samples" in str(caught.value)
    assert "shard-000002.tar is missing" in str(caught.value)


def test_a_shard_that_vanishes_later_is_a_sample_error(folder: Path) -> None:
    shards = ShardFolder.open(folder)
    (folder / shards.shard(0)).unlink()
    with pytest.raises(SampleError, match="No such file"):
        shards.read(0)


def test_an_altered_index_is_refused(folder: Path) -> None:
    content = bytearray((folder / "index.npy").read_bytes())
    content[-3] ^= 1
    (folder / "index.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"index\.npy is damaged"):
        ShardFolder.open(folder)


def test_a_missing_index_is_named(folder: Path) -> None:
    (folder / "index.npy").unlink()
    with pytest.raises(UserError, match=r"index\.npy cannot be read: No such file"):
        ShardFolder.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content | {"version": 2}, "version 2; this program reads 1"),
        (lambda content: content | {"format": "wids"}, "does not describe shards"),
        (lambda content: content | {"classes": ["ant"]}, "labels outside the 1 classes"),
        (lambda content: content | {"shards": content["shards"][:1]}, "not 8 of"),
        (lambda content: content | {"shards": [{"file": "x"}]}, "incomplete"),
        (lambda content: {k: v for k, v in content.items() if k != "classes"}, "incomplete"),
        (lambda content: [], "does not describe shards"),
    ],
)
def test_an_unusable_description_says_why(folder: Path, change, message: str) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        ShardFolder.open(folder)


def test_what_is_no_shard_folder_says_why(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ShardFolder.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a folder of shards"):
        ShardFolder.open(tmp_path)
    with pytest.raises(UserError, match="holds the splits train: name one"):
        ShardFolder.open(made.parent)
    (tmp_path / "shard-000000.tar.partial").touch()
    with pytest.raises(UserError, match="cut short; the same command"):
        ShardFolder.open(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json cannot be read"):
        ShardFolder.open(tmp_path)


def test_a_pickled_folder_reads_and_stays_small(made: Path) -> None:
    shards = ShardFolder.open(made)
    shards.read(0)
    packed = pickle.dumps(shards)
    assert len(packed) < 2500
    again = pickle.loads(packed)
    assert [again.read(i) for i in range(30)] == [shards.read(i) for i in range(30)]


def test_a_sample_error_survives_another_process() -> None:
    error = pickle.loads(pickle.dumps(SampleError("a.tar", "k", "cut")))
    assert (error.shard, error.key, error.cause, str(error)) == (
        *("a.tar", "k", "cut"),
        "a.tar, sample k: cut",
    )


@pytest.mark.parametrize(("limit", "most"), [(8, 4), (resource.RLIM_INFINITY, 15)])
def test_more_shards_than_open_files_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, most: int
) -> None:
    def opened() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(str(tmp_path) in os.path.realpath(link) for link in links)

    shards = make_shards(tmp_path / "many", images_per_shard=2)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    for sample in np.random.default_rng(0).permutation(30):
        assert len(shards.read(int(sample))) == shards.index[sample]["size"]
        assert opened() <= most + 1  # and the mapped index
    del shards
    assert opened() == 0


def test_names_are_cut_as_webdataset_cuts_them() -> None:
    from webdataset.tariterators import base_plus_ext

    for name in ("a.jpg", "a.b.JPG", "x/y.z/a.b.c", "x/a.cls"):
        key, extension = split_name(name)
        theirs = base_plus_ext(name)
        assert (key, extension) == (theirs[0], theirs[1].lower())
