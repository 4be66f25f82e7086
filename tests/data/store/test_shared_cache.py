"""Runs with one cache of shards: each keeps within its own limit, and removes what others need."""

import multiprocessing
import pickle
from pathlib import Path

import pytest

from poa_ds.data.store.remote import RemoteFolder
from tests.support.local_server import serving
from tests.support.shards import make_shards, samples


def _remove_all(folder: Path) -> None:
    while True:
        for path in folder.glob("*.tar"):
            path.unlink(missing_ok=True)


def test_what_another_run_removes_before_it_is_read_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteFolder, "wait_seconds", 0.001)
    made = make_shards(tmp_path / "made" / "train", images_per_shard=5)
    with serving(made.path) as server:
        read_beside_removal(RemoteFolder.at(server.address, tmp_path / "cache"), samples(made))


def read_beside_removal(remote: RemoteFolder, expected: list) -> None:
    other = multiprocessing.get_context("fork").Process(target=_remove_all, args=(remote.path,))
    other.start()
    try:
        for _ in range(8):
            assert samples(pickle.loads(pickle.dumps(remote))) == expected
    finally:
        other.kill()
        other.join()
