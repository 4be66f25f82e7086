"""Shards at an address: fetched once per node, checked, retried, and every fault is named."""

import fcntl
import multiprocessing
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from poa_ds.data.loader import slot_batches
from poa_ds.data.places import open_folder, open_training, order_of, prefetchers
from poa_ds.data.store.fetch import ATTEMPTS, FetchError
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.mixture import LAP, Mixture, MixtureOrder
from poa_ds.data.store.order import BlockOrder
from poa_ds.data.store.remote import Prefetcher, RemoteFolder
from poa_ds.recipe.tree import Data
from poa_ds.system.errors import UsageError, UserError
from tests.data.test_loader import SPEC, same, take
from tests.support.local_server import Server, serving
from tests.support.shards import make_shards, samples

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
    assert set(server.asked) == {f"/{shard.file}" for shard in made.manifest.shards}
    assert set(server.asked.values()) == {1}  # not those that are here already
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


@pytest.mark.parametrize("fault", ["500", "404", "cut", "unannounced", "wrong", "long"])
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
        "unannounced": {
            "dataset.json": "wrong content: dataset.json cannot be read",
            "index.npy": "wrong content: its sha256",
            "shard-000002.tar": "bytes came instead of",
        }[name],
        "long": "bytes came instead of" if name == "shard-000002.tar" else "wrong content",
        "wrong": "wrong content: its sha256 is not the one in dataset.json",
    }
    assert causes[fault] in str(caught.value)
    assert not list((tmp_path / "b").glob(f"*/{name}"))


@pytest.mark.parametrize(
    ("fault", "cause"), [("404", "the server answered 404"), ("long", "bytes are there instead of")]
)
@pytest.mark.parametrize("no_head", [0, 405])
def test_a_missing_or_cut_shard_is_named_at_the_start(
    server: Server, tmp_path: Path, fault: str, cause: str, no_head: int
) -> None:
    """Before any shard is fetched, also from servers that only know GET."""
    server.no_head = no_head
    bad = ("/shard-000001.tar", "/shard-000004.tar")
    server.fault = lambda path, n: fault if path in bad else None
    with pytest.raises(FetchError) as caught:
        open_folder(server.address, Data(cache=str(tmp_path)))
    assert str(caught.value).count(cause) == 2
    assert all(f"{server.address}{path}: {ATTEMPTS}" in str(caught.value) for path in bad)
    assert not list(tmp_path.glob("*/*.tar*"))


def test_ranks_share_the_question_whether_the_shards_are_there(
    made: ShardFolder, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in range(4):
        for name, value in (("RANK", rank), ("WORLD_SIZE", 4), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        open_folder(server.address, Data(cache=str(tmp_path)))
    assert len(server.asked) == len(made.manifest.shards) and set(server.asked.values()) == {1}


def test_a_full_disk_is_no_fault_of_the_network(server: Server, tmp_path: Path) -> None:
    remote = RemoteFolder.at(server.address, tmp_path)
    (remote.path / f"{remote.shard(12)}.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written: No space left") as caught:
        remote.read(12)
    assert server.requests[f"/{remote.shard(12)}"] == 1 and not isinstance(caught.value, FetchError)


def test_what_another_process_fetches_is_left_to_it(server: Server, tmp_path: Path) -> None:
    remote = RemoteFolder.at(server.address, tmp_path)
    with open(remote.path / f"{remote.manifest.shards[1].file}.lock", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not remote.obtain(1, join=False)
    assert not server.requests[f"/{remote.manifest.shards[1].file}"]
    assert remote.obtain(1, join=False) and not remote.obtain(1)


def test_what_was_downloaded_names_no_file_outside_the_cache(
    made: ShardFolder, server: Server, tmp_path: Path
) -> None:
    server.folder = Path(shutil.copytree(made.path, tmp_path / "served"))
    for name in ("../../x.tar", "/x.tar"):
        path = server.folder / "dataset.json"
        path.write_text(path.read_text().replace('"shard-000001.tar"', f'"{name}"'))
        with pytest.raises(FetchError, match=rf"dataset\.json: {name} lies outside its folder"):
            RemoteFolder.at(server.address, tmp_path / "cache")
        shutil.copy(made.path / "dataset.json", path)


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
    most = 5 * max(shard.bytes for shard in made.manifest.shards)
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


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_next_block_is_fetched_ahead(made: ShardFolder, server: Server, tmp_path: Path) -> None:
    remote = RemoteFolder.at(server.address, tmp_path)
    order = BlockOrder(remote.starts, seed=3, block=2)
    Prefetcher(remote, order, 0).at(0)
    wanted = {remote.manifest.shards[n].file for n in order.shards(0)[:4].tolist()}
    wait_for(lambda: {path.name for path in remote.path.glob("*.tar")} == wanted)


def test_a_cache_that_holds_no_three_blocks_is_refused(
    made: ShardFolder, server: Server, tmp_path: Path
) -> None:
    remote = RemoteFolder.at(server.address, tmp_path)
    order = order_of(remote, 0, 1)
    three = 3 * max(shard.bytes for shard in made.manifest.shards)
    assert len(prefetchers(remote, order, three)) == len(prefetchers(remote, order, 0)) == 1
    with pytest.raises(UsageError, match=r"data.cache_gb .* three blocks of data.block_shards 1"):
        open_training(
            Data(server.address, cache=str(tmp_path), cache_gb=three / 2e9, block_shards=1)
        )


def test_a_mixture_is_fetched_ahead_and_keeps_within_the_cache(
    made: ShardFolder, server: Server, tmp_path: Path
) -> None:
    """Two folders at addresses and one on the disk: the batches are those of three on the disk."""
    second = make_shards(tmp_path / "second", count=40, images_per_shard=4, seed=1)
    third = make_shards(tmp_path / "third", count=9, seed=2)
    with serving(second.path) as other:
        data = Data(cache=str(tmp_path / "cache"))
        remotes = [open_folder(address, data) for address in (server.address, other.address)]
        mixture, whole = (Mixture([a, b, third], [3, 2, 1]) for a, b in (remotes, (made, second)))
        order = order_of(mixture, SPEC.seed, 1)
        assert isinstance(order, MixtureOrder)
        needed = sum(
            Prefetcher.needed_bytes(f, o) for f, o in zip(remotes, order.orders[:2], strict=True)
        )
        spec = replace(SPEC, block_shards=1, cache_bytes=needed, slots=1)
        for workers in (0, 2):
            expected = slot_batches(spec, whole)
            found = take(slot_batches(spec, mixture, workers=workers), 40)
            assert all(same(a, b) for a, b in zip(found, expected, strict=False))
            wait_for(lambda: 0 < sum(map(_bytes, remotes)) <= needed)
        ahead = prefetchers(mixture, order, 0)
        assert [prefetcher.folder for prefetcher in ahead] == remotes
        for remote in remotes:
            remote.remove(range(len(remote.manifest.shards)), 0)
        first = next(p for p in range(1000) if order.row(p) < mixture.starts[1])
        ahead[0].at(first + LAP)
        own = order.orders[0]
        epoch, block = own.place(sum(order.row(p) < mixture.starts[1] for p in range(first + LAP)))
        shards = own.block_shards(epoch, block) + own.block_shards(epoch, block + 1)
        names = {made.manifest.shards[n].file for n in shards}
        wait_for(lambda: {path.name for path in remotes[0].path.glob("*.tar")} == names)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a local S3 server."""
    reason = "a local S3 server needs moto[server] and s3fs"
    server = pytest.importorskip("moto.server", reason=reason)
    store = pytest.importorskip("s3fs", reason=reason).S3FileSystem
    store.clear_instance_cache()  # it may know the server of another test
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(RemoteFolder, "wait_seconds", 0.001)
    yield "s3://shards/train"
    running.stop()


def test_an_object_store_serves_training(made: ShardFolder, s3: str, tmp_path: Path) -> None:
    import s3fs

    store = s3fs.S3FileSystem()
    store.mkdir("shards")
    store.put(str(made.path), "s3://shards/", recursive=True)
    spec = replace(SPEC, block_shards=1)
    expected = take(slot_batches(spec, made), 12)
    for workers in (0, 2):  # the second are forked from a process that has asked the store
        remote = open_folder(s3, Data(cache=str(tmp_path / str(workers))))
        assert all(map(same, take(slot_batches(spec, remote, workers=workers), 12), expected))
    store.rm(f"{s3}/shard-000002.tar")
    store.pipe(f"{s3}/shard-000003.tar", b"short")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(FetchError) as caught:
        open_folder(s3, Data(cache=str(tmp_path / "other")))
    assert "shard-000002.tar: 5 attempts failed: the connection failed: FileNotFoundError" in str(
        caught.value
    )
    assert "shard-000003.tar: 5 attempts failed: 5 bytes are there instead of" in str(caught.value)
