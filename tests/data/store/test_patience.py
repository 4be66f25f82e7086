"""Servers that never come to an end: what is read from an address has limits of time and size."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poa_ds.data.places import open_folder
from poa_ds.data.store import fetch, remote
from poa_ds.data.store.fetch import FetchError
from poa_ds.data.store.patience import TooSlow, timed
from poa_ds.data.store.remote import RemoteFolder
from poa_ds.recipe.tree import Data
from tests.support.local_server import Server, serving
from tests.support.shards import make_shards, samples


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(RemoteFolder, "wait_seconds", 0.001)
    make_shards(tmp_path / "made")
    with serving(tmp_path / "made") as running:
        yield running


@pytest.mark.parametrize("name", ["shard-000002.tar", "index.npy", "dataset.json"])
@pytest.mark.parametrize("fault", ["drip", "slow header"])
def test_a_server_that_sends_byte_by_byte_has_failed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
) -> None:
    """Each byte came in time; the whole would have taken years."""
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.2)
    server.fault = lambda path, n: fault if path == f"/{name}" else None
    begun = time.monotonic()
    with pytest.raises(FetchError, match=rf"{name}: .* too slow: \d+ bytes in 0 seconds"):
        samples(RemoteFolder.at(server.address, tmp_path / "cache"))
    assert time.monotonic() - begun < 20


def test_the_question_for_a_size_has_a_limit_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.2)
    server.fault = lambda path, n: "slow header" if path.endswith(".tar") else None
    with pytest.raises(FetchError, match="too slow"):
        open_folder(server.address, Data(cache=str(tmp_path / "cache")))


@pytest.mark.parametrize("name", ["shard-000002.tar", "index.npy", "dataset.json"])
def test_what_has_no_end_is_not_taken(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(remote, "MANIFEST_BYTES", 100_000)
    server.fault = lambda path, n: "endless" if path == f"/{name}" else None
    with pytest.raises(FetchError, match=rf"{name}: .* (more than \d+ bytes came|instead of)"):
        samples(RemoteFolder.at(server.address, tmp_path / "cache"))
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*")) < 5_000_000


def test_a_length_that_is_no_number_is_named(server: Server, tmp_path: Path) -> None:
    server.fault = lambda path, n: "length" if path.endswith(".tar") else None
    with pytest.raises(FetchError, match="announces a length of '12 apples'"):
        open_folder(server.address, Data(cache=str(tmp_path / "cache")))


def test_what_a_server_answers_is_shown_escaped(server: Server, tmp_path: Path) -> None:
    server.fault = lambda path, n: "answer"
    with pytest.raises(FetchError) as caught:
        RemoteFolder.at(server.address, tmp_path / "cache")
    assert r"the server answered 500 \x1b[2Jgone" in str(caught.value)


def test_a_thread_that_nobody_waits_for_ends() -> None:
    """As soon as what it waits for comes, or nobody takes what came."""
    gone, before = threading.Event(), threading.active_count()

    def late() -> Iterator[int]:
        yield 1
        gone.wait()
        yield from range(100)

    taken = timed(late(), lambda _: 0.1)
    assert next(taken) == 1
    with pytest.raises(TooSlow):
        next(taken)
    gone.set()
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
