"""poa-ds eval segmentation on two real gloo ranks gives the numbers of one process."""

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from poa_ds import cli
from poa_ds.evaluate import score_rows
from poa_ds.evaluate.segmentation.training import Training
from tests.support.masked import make_shapes
from tests.support.teachers import make_teacher

STEPS = 6


def measured(folder: Path, run: str, *more: object) -> None:
    places = ("--train", folder / "train", "--val", folder / "val", "--layout", "folder")
    short = ("--sizes", "32x2,48x3", "--crop", 32, "--steps", STEPS, "--batch", 5, "--workers", 0)
    words = ("eval", "segmentation", folder / run, *places, *short, *more)
    assert cli.main([str(word) for word in words]) == 0


def kept(folder: Path, run: str) -> None:
    """The same, and what was learnt is copied out of the folder that goes at the end."""
    save = Training.save

    def copied(self: Training, place: Path, step: int) -> None:
        save(self, place, step)
        if step == STEPS:
            save(self, folder / f"heads_{run}", step)

    Training.save = copied
    measured(folder, run)
    Training.save = save


def work(rank: int, folder: Path) -> None:
    """A group found by a file: no port that another program may take."""
    environment = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_PORT": 1}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": True}  # nobody opens that port
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    kept(folder, "two")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_learn_and_measure_what_one_does(tmp_path: Path) -> None:
    """Norms, whose batch no rank has whole, to the rounding of float64 sums."""
    for name in ("one", "two"):
        make_teacher(tmp_path / name)
    make_shapes(tmp_path / "train", 7, side=32)
    make_shapes(tmp_path / "val", 3, first=100, side=32)
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    kept(tmp_path, "one")
    for size in ("32x2", "48x3"):
        one, two = (
            load_file(tmp_path / f"heads_{run}" / f"step{STEPS:08d}" / f"{size}.safetensors")
            for run in ("one", "two")
        )
        for name, x in one.items():
            torch.testing.assert_close(x, two[name], atol=1e-6, rtol=1e-4, msg=name)
    one, two = (score_rows.read(tmp_path / run / "evaluations.jsonl") for run in ("one", "two"))
    assert len(one) == len(two) == 6
    for own, other in zip(one, two, strict=True):
        assert (own.size, own.name, own.protocol_id) == (other.size, other.name, other.protocol_id)
        assert own.setting["rate"] == other.setting["rate"]
        assert own.value == pytest.approx(other.value, abs=0.1)  # a pixel of a few thousands
