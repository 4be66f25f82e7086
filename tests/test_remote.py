"""Shards at an address: fetched once per node, checked, retried, and every fault is named."""

import multiprocessing
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from poa_ds.data.fetch import ATTEMPTS, FetchError
from poa_ds.data.index import ShardFolder
from poa_ds.data.loader import slot_batches
from poa_ds.data.order import BlockOrder
from poa_ds.data.places import open_folder
from poa_ds.data.remote import Prefetcher, RemoteFolder
from poa_ds.errors import UserError
from poa_ds.recipe import Data
from tests.local_server import Server, serving
from tests.made_shards import make_shards, samples
from tests.test_loader import SPEC, same, take

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    return make_shards(tmp_path_factory.mktemp("made") / "train", images_per_shard=5)


@pytest.fixture
def server(made: ShardFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(RemoteFolder, "wait_seconds", 0.001)
    with serving(made.path) as running:
        yield running


def test_samples_are_those_of_the_folder(made: ShardFolder, server: Server, tmp_path: Path) -> None:
    remote = open_folder(f"{server.address}/", Data(cache=str(tmp_path)))
    assert not list(tmp_path.glob("*/*.tar")) and remote.hash == made.hash
    assert samples(remote) == samples(made)
    assert samples(pickle.loads(pickle.dumps(remote))) == samples(made)
    assert {n for path, n in server.requests.items() if path.endswith(".tar")} == {1}
    again = open_folder(server.address, Data(cache=str(tmp_path)))
    assert samples(again) == samples(made)
    assert server.requests.pop("/dataset.json") == 2 and set(server.requests.values()) == {1}
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]


def test_fsspec_reads_other_addresses(made: ShardFolder, tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="addresses that are not http need fsspec")
    remote = RemoteFolder.at(f"file://{made.path}", tmp_path)
    assert samples(remote) == samples(made)
    with pytest.raises(UserError, match="nonsense"):
        RemoteFolder.at("nonsense://x", tmp_path)


def test_data_sets_of_the_same_name_do_not_meet(
    made: ShardFolder, server: Server, tmp_path: Path
) -> None:
    other = make_shards(tmp_path / "other", count=12, images_per_shard=5)
    with serving(other.path) as second:
        remotes = [RemoteFolder.at(s.address, tmp_path / "cache") for s in (server, second)]
        assert [samples(remote) for remote in remotes] == [samples(made), samples(other)]


@pytest.mark.parametrize("fault", ["500", "404", "cut", "wrong", "long"])
@pytest.mark.parametrize("name", ["shard-000002.tar", "index.npy", "dataset.json"])
def test_a_fault_is_retried_and_then_named(
    made: ShardFolder, server: Server, tmp_path: Path, fault: str, name: str
) -> None:
    if name == "dataset.json" and fault in ("wrong", "long"):
        pytest.skip("nothing says what it should be; it is not valid JSON or another data set")
    server.fault = lambda path, n: fault if path == f"/{name}" and n < ATTEMPTS - 1 else None
    remote = RemoteFolder.at(server.address, tmp_path / "a")
    assert samples(remote) == samples(made)
    assert server.requests[f"/{name}"] == ATTEMPTS
    server.fault = lambda path, n: fault if path == f"/{name}" else None
    with pytest.raises(FetchError, match=f"{name}: {ATTEMPTS} attempts failed") as caught:
        samples(RemoteFolder.at(server.address, tmp_path / "b"))
    causes = {
        "500": "the server answered 500",
        "404": "the server answered 404",
        "cut": "the connection was cut after",
        "long": "bytes came instead of" if name == "shard-000002.tar" else "wrong content",
        "wrong": "wrong content: its sha256 is not the one in dataset.json",
    }
    assert causes[fault] in str(caught.value)
    assert not list((tmp_path / "b").glob(f"*/{name}"))


def test_a_server_that_is_gone_is_named(made: ShardFolder, tmp_path: Path, server: Server) -> None:
    with pytest.raises(FetchError, match="attempts failed: the connection failed"):
        RemoteFolder.at("http://localhost:9", tmp_path)


def test_a_copy_that_was_damaged_later_is_fetched_again(
    made: ShardFolder, server: Server, tmp_path: Path
) -> None:
    remote = RemoteFolder.at(server.address, tmp_path)
    before = samples(remote)
    path = remote.path / remote.shard(12)
    content = bytearray(path.read_bytes())
    content[int(remote.index[12]["offset"]) + 9] ^= 1
    path.write_bytes(content)
    assert samples(remote) == before
    assert server.requests[f"/{remote.shard(12)}"] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_those_of_local_shards(
    made: ShardFolder, server: Server, tmp_path: Path, workers: int
) -> None:
    spec = replace(SPEC, block_shards=2)
    remote = RemoteFolder.at(server.address, tmp_path)
    expected = take(slot_batches(spec, made), 12)
    assert all(map(same, take(slot_batches(spec, remote, workers=workers), 12), expected))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_stops_the_run_even_where_images_are_replaced(
    server: Server, tmp_path: Path, workers: int
) -> None:
    spec = replace(SPEC, on_error="replace", max_bad_fraction=1.0)
    server.fault = lambda path, n: "500" if path == "/shard-000002.tar" else None
    remote = RemoteFolder.at(server.address, tmp_path)
    with pytest.raises(FetchError, match=r"shard-000002\.tar: 5 attempts failed: .* 500"):
        take(slot_batches(spec, remote, workers=workers), 12)


def _read_all(remote: RemoteFolder, barrier: multiprocessing.Barrier) -> None:
    barrier.wait()
    samples(remote)


def test_processes_of_a_node_fetch_each_shard_once(server: Server, tmp_path: Path) -> None:
    remote = RemoteFolder.at(server.address, tmp_path)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    readers = [context.Process(target=_read_all, args=(remote, barrier)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
        assert reader.exitcode == 0
    assert {n for path, n in server.requests.items() if path.endswith(".tar")} == {1}


def test_copies_behind_the_run_are_removed(
    made: ShardFolder, server: Server, tmp_path: Path
) -> None:
    most = 4 * max(shard.bytes for shard in made.manifest.shards)
    spec = replace(SPEC, block_shards=1, cache_bytes=most, slots=1)
    remote = RemoteFolder.at(server.address, tmp_path)
    expected = slot_batches(spec, made)
    for batch, wanted in zip(take(slot_batches(spec, remote), 40), expected, strict=False):
        assert same(batch, wanted)
    deadline = time.monotonic() + 10  # the thread may be at work still
    while (size := _bytes(remote)) > most and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 0 < size <= most


def _bytes(folder: RemoteFolder) -> int:
    return sum(path.stat().st_size for path in folder.path.glob("*.tar"))


def test_the_next_block_is_fetched_ahead(made: ShardFolder, server: Server, tmp_path: Path) -> None:
    remote = RemoteFolder.at(server.address, tmp_path)
    order = BlockOrder(remote.starts, seed=3, block=2)
    Prefetcher(remote, order, 0).at(0)
    wanted = {remote.manifest.shards[n].file for n in order.shards(0)[:4].tolist()}
    deadline = time.monotonic() + 10
    while {path.name for path in remote.path.glob("*.tar")} != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)
