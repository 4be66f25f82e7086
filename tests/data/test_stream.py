"""Tars that are read from front to back: the same images, split over readers, damage named."""

import bz2
import gzip
import io
import itertools
import lzma
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from poa_ds.data import stream
from poa_ds.data.places import open_training
from poa_ds.data.store import fetch
from poa_ds.data.store.index import SampleError, ShardFolder
from poa_ds.data.store.patience import timed
from poa_ds.data.stream import Stream, images_of, stream_batches
from poa_ds.recipe import load
from poa_ds.recipe.tree import Data
from poa_ds.system.errors import UsageError, UserError
from tests.data.test_damage import LOCAL, SHARD, undecodable
from tests.data.test_loader import SPEC, take
from tests.data_tools.test_foreign_names import MAC, labelled
from tests.support.local_server import serving
from tests.support.shards import add_tar, make_shards, samples

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    return make_shards(tmp_path / "train", images_per_shard=8)


def pipes(folder: ShardFolder) -> Stream:
    found = open_training(
        Data(train=f"pipe:cat {folder.path}/shard-{{000000..000003}}.tar", mode="stream", images=30)
    )
    assert isinstance(found, Stream) and len(found.sources) == 4 and len(found) == 30
    return found


def test_a_pipe_gives_every_image_with_its_key_and_label(folder: ShardFolder) -> None:
    found = [image for source in pipes(folder).sources for image in images_of(source)]
    assert {key: (content, label) for _, key, content, label in found} == samples(folder)
    assert len(found) == 30


def test_every_pass_reads_every_image_once(folder: ShardFolder) -> None:
    """Seen in the labels: batches of one image, so that nothing is left over at a pass's end."""
    spec = replace(SPEC, images_per_slot=1, slots=4)
    batches = take(stream_batches(spec, pipes(folder), workers=1), 60)
    for first in (0, 30):
        labels = Counter(int(b.labels) for b in batches[first : first + 30])
        assert labels == Counter(folder.labels.tolist())
    assert [(b.step, b.slot) for b in batches] == [divmod(n, 4) for n in range(60)]


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (2, 2), (4, 1)])
def test_readers_share_the_sources_out(
    folder: ShardFolder, monkeypatch: pytest.MonkeyPatch, world: int, workers: int
) -> None:
    opened: list[str] = []

    def record(source: str) -> Iterator[stream.Image]:
        opened.append(source)
        return images_of(source)

    monkeypatch.setattr(stream, "images_of", record)
    for rank in range(world):
        slots = stream._StreamSlots(SPEC, pipes(folder), rank, world, 0)
        for worker in range(workers):
            # all that a reader has in one pass fits into its buffer before the first image
            next(slots._images(rank * workers + worker, world * workers, (0, 0, worker)))
    assert sorted(opened) == pipes(folder).sources


def test_images_are_mixed_and_passes_and_restarts_differ(folder: ShardFolder) -> None:
    spec = replace(SPEC, images_per_slot=1, slots=1)
    batches = take(stream_batches(spec, pipes(folder)), 60)
    again = take(stream_batches(spec, pipes(folder)), 60)
    later = take(stream_batches(spec, pipes(folder), first_step=30), 30)
    order = [[int(b.labels) for b in part] for part in (batches[:30], batches[30:], later)]
    assert [int(b.labels) for b in again] == order[0] + order[1]
    assert order[0] != order[1] and order[2] not in order[:2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a bit of a tar header is flipped", "damaged tar header"),
        ("a shard is cut inside an image", "cut short"),
        ("a shard is cut between two members", "cut short"),
        ("a shard is empty", "cut short"),
        ("a shard is missing", "cannot be read|cut short"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_not_taken_for_the_end(
    folder: ShardFolder, name: str, message: str, workers: int
) -> None:
    LOCAL[name](folder.path)
    with pytest.raises(UserError, match=message) as caught:
        take(stream_batches(SPEC, pipes(folder), workers=workers), 30)
    assert SHARD in str(caught.value)


def test_an_undecodable_image_stops_the_run_or_is_passed_over(tmp_path: Path) -> None:
    make_shards(tmp_path / "train")
    undecodable(tmp_path / "train")
    source = pipes(ShardFolder.open(tmp_path / "train"))
    with pytest.raises(SampleError, match="image_007: undecodable image"):
        take(stream_batches(SPEC, source), 12)
    spec = replace(SPEC, on_error="replace", max_bad_fraction=0.1)
    batches = take(stream_batches(spec, source), 20)
    assert {bad[1] for batch in batches for bad in batch.bad} == {"image_007"}
    assert all(batch.size == 3 for batch in batches)


def test_samples_without_an_image_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.txt", "b.jpg", "b.txt", "c.gif", "d.jpg"):
            member = tarfile.TarInfo(name)
            tar.addfile(member)
    assert [key for _, key, *_ in images_of(str(path))] == ["b", "d"]
    assert f"{path}: 2 samples without an image, e.g. a\n" in capsys.readouterr().err


def test_too_few_sources_are_refused(folder: ShardFolder) -> None:
    with pytest.raises(UsageError, match=r"4 sources for 2 ranks x 3 data\.workers"):
        next(stream_batches(SPEC, pipes(folder), world=2, workers=3))


def test_a_source_without_images_is_named(tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "x"), "tar", Path(__file__).parents[1] / "kernels")
    with pytest.raises(UserError, match=r"x\.tar: no image in it"):
        list(itertools.islice(images_of(str(tmp_path / "x.tar")), 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mode": "stream", "train": "pipe:cat x"}, "data.images is 0"),
        (
            {"mode": "stream", "train": "x", "images": 5, "block_shards": 3},
            "are for folders",
        ),
        ({"train": "x", "images": 5}, "data.images 5: a folder says itself"),
    ],
)
def test_wrong_recipes_say_what_is_allowed(data: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load.from_dict({"data": data})


PACKED = {"gz": "gzip", "bz2": "bzip2", "xz": "xz"}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_tars_are_unpacked_on_the_way(folder: ShardFolder, kind: str) -> None:
    opener = {"gz": gzip, "bz2": bz2, "xz": lzma}[kind].open
    path = folder.path / "shard-000000.tar"
    with opener(folder.path / f"x.tar.{kind}", "wb") as file:
        file.write(path.read_bytes())
    for source in (str(folder.path / f"x.tar.{kind}"), f"pipe:cat {folder.path}/x.tar.{kind}"):
        found = [image[1:] for image in images_of(source)]
        assert found == [image[1:] for image in images_of(str(path))] and len(found) == 8
    whole = (folder.path / f"x.tar.{kind}").read_bytes()
    (folder.path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut: cut short|cut cannot be read"):
        list(images_of(str(folder.path / "cut")))


@pytest.mark.parametrize(
    ("magic", "program"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b'\4"M\x18', "lz4")]
)
def test_what_no_library_unpacks_names_the_pipe(tmp_path: Path, magic: bytes, program: str) -> None:
    path = tmp_path / "x.tar.zst"
    path.write_bytes(magic + bytes(2000))
    with pytest.raises(UserError, match=f"is compressed: data.train can be `pipe:{program} -dc "):
        list(images_of(str(path)))


def test_a_stream_passes_over_leftovers_and_reads_what_classes_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_tar(tmp_path / "mac.tar", MAC)
    found = [(key, label) for _, key, _, label in images_of(str(tmp_path / "mac.tar"))]
    assert found == [("k0", 0), ("sub/k1", -1)]
    assert "5 leftovers of file managers are passed over" in capsys.readouterr().err
    add_tar(tmp_path / "x.tar", labelled("-1", "n01440764", "3"))
    assert [label for *_, label in images_of(str(tmp_path / "x.tar"))] == [-1, -1, 3]
    add_tar(tmp_path / "x.tar", labelled("2000000000"))
    with pytest.raises(UserError, match="its class 2000000000 is none"):
        list(images_of(str(tmp_path / "x.tar")))
    add_tar(tmp_path / "x.tar", {"a.input.jpg": b"1"})
    with pytest.raises(UserError, match=r"no image in it; names end in input\.jpg \(1\)"):
        list(images_of(str(tmp_path / "x.tar")))


def test_a_large_member_is_passed_over_piece_by_piece(tmp_path: Path) -> None:
    """A video beside the image: it was read into memory whole."""
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as file:
        with tarfile.open(fileobj=file, mode="w|") as tar:
            for name, size in (("a.mp4", 300 << 20), ("a.jpg", 7)):
                member = tarfile.TarInfo(name)
                member.size = size
                tar.addfile(member, io.BytesIO(bytes(size)))
    code = "import resource, sys; from poa_ds.data.stream import images_of\n"
    code += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    code += "print([key for _, key, *_ in images_of(sys.argv[1])])\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000)"
    words = [sys.executable, "-c", code, str(tmp_path / "x.tar.gz")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "['a']\nTrue\n"


def test_a_stream_from_a_server_has_limits_and_starts_no_program(
    folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: pytest.fail(f"starts {words}"))
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.3)
    path = folder.path / "shard-000000.tar"
    with serving(folder.path) as server:
        source = f"{server.address}/{path.name}"
        found = [image[1:] for image in images_of(source)]
        assert found == [image[1:] for image in images_of(str(path))] and len(found) == 8
        for fault, message in (
            ("404", "the server answered 404"),
            ("cut", "the connection was cut after"),
            ("drip", "too slow"),
            ("hang", "too slow|timed out"),
        ):
            server.fault = lambda path, n, fault=fault: fault
            with pytest.raises(UserError, match=message):
                list(images_of(source))


def test_a_taker_may_take_its_time() -> None:
    """A run reads a tar for an hour; the server is not to blame."""
    taken = []
    for item in timed(iter(range(12)), lambda _: 0.3):
        time.sleep(0.05)
        taken.append(item)
    assert taken == list(range(12))
