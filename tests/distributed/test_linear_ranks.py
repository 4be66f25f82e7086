"""poa-ds eval linear and logistic on two real gloo ranks give the numbers of one process."""

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from poa_ds import cli
from poa_ds.evaluate import score_rows
from tests.support.shards import make_shards
from tests.support.teachers import make_teacher

COMMANDS = (
    ("linear", "--steps", 5, "--batch", 20, "--learning-rates", "0.05,0.1,0.2,0.5,1"),
    ("linear", "--crops", "centre", "--steps", 30, "--batch", 20, "--learning-rates", "0.5,1"),
    ("logistic", "--c", 1),
)


def measured(folder: Path, run: str) -> None:
    places = ("--train", folder / "train", "--val", folder / "val", "--sizes", "32x2,48x3")
    for name, *words in COMMANDS:
        given = ("eval", name, folder / run, *places, "--batch-size", 4, "--workers", 0, *words)
        assert cli.main([str(word) for word in given]) == 0


def work(rank: int, folder: Path) -> None:
    """One group for all commands, found by a file: no port that another program may take."""
    environment = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_PORT": 1}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": True}  # nobody opens that port
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    measured(folder, "two")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    make_teacher(tmp_path / "one")
    make_teacher(tmp_path / "two")
    make_shards(tmp_path / "train", 45)
    make_shards(tmp_path / "val", 16, first=100)
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks: sums in the same order
    measured(tmp_path, "one")
    torch.set_num_threads(threads)
    one, two = (score_rows.read(tmp_path / run / "evaluations.jsonl") for run in ("one", "two"))
    assert len(one) == len(two) == 20
    for own, other in zip(one, two, strict=True):
        assert (own.size, own.name, own.protocol_id) == (other.size, other.name, other.protocol_id)
        assert (own.value, own.setting) == (other.value, other.setting), own.name
