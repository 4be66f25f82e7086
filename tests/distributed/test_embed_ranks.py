"""poa-ds embed on two real gloo ranks writes the very files of one process."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from poa_ds import cli
from poa_ds.evaluate.embed import command as embed
from tests.support.shards import content, make_shards
from tests.support.teachers import make_teacher


def embedded(folder: Path, name: str) -> int:
    words = ("--shards", folder / "shards", "--sizes", "32x2", "--batch-size", 3, "--workers", 0)
    given = ("embed", folder / "run", "--out", folder / name, *words)
    embed.PART_BATCHES = 2
    return cli.main([str(word) for word in given])


def work(rank: int, port: int, folder: Path) -> None:
    environment = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    assert embedded(folder, "two") == 0


@pytest.mark.slow
def test_two_ranks_write_the_files_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "PART_BATCHES", 2)
    make_teacher(tmp_path / "run")
    make_shards(tmp_path / "shards", 20)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, tmp_path), nprocs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks: sums in the same order
    assert embedded(tmp_path, "one") == 0
    torch.set_num_threads(threads)
    assert content(tmp_path / "two") == content(tmp_path / "one")
