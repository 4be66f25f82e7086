"""Two ranks save together: one folder, and one answer when the disk of one of them fails."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch.distributed
import torch.multiprocessing

from poa_ds.checkpoint import folders
from poa_ds.checkpoint import state as checkpoint
from poa_ds.checkpoint.reshard import opened
from poa_ds.checkpoint.saver import Saver
from poa_ds.checkpoint.state import KEYS, Snapshot
from poa_ds.system.errors import UserError
from tests.support.checkpoints import saver, snapshot


def part(at: int, rank: int) -> Snapshot:
    """The snapshot of a rank that owns 500 of 1000 elements."""
    whole, own = snapshot(at), slice(500 * rank, 500 * (rank + 1))
    arrays = {name: array[own].copy() for name, array in whole.arrays.items()}
    return replace(whole, arrays=arrays, pieces={"backbone.a": (500 * rank, 500)})


def steps_until_told(s: Saver) -> int:
    for step in range(10_000):
        s.poll()
        if s._job is None:
            return step
        time.sleep(0.01)
    raise AssertionError("never came to an end")


def work(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", f"file://{folder / 'store'}", world_size=2, rank=rank
    )
    root = folder / "checkpoints"
    s = saver(root)
    s.begin(part(1, rank))
    steps_until_told(s)
    told = []
    for at in (2, 3):
        if rank == 1:  # a folder where its file should be
            (root / f".step{at:08d}.partial" / "shard-00001.safetensors").mkdir(parents=True)
        s.begin(part(at, rank))
        try:
            told.append(steps_until_told(s))
        except UserError as error:
            told.append(str(error))
    s.begin(part(4, rank))
    s.finish()
    (root / "step00000004" / "shard-00001.safetensors").write_bytes(b"")
    torch.distributed.barrier()
    found, refused = checkpoint.find_together(root)
    told += [str(found), refused]
    (folder / f"rank{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_both_ranks_know_of_a_failure_after_the_same_step(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    root = tmp_path / "checkpoints"
    assert "rank 1" in told[0][1] and "2 in a row" in told[0][1]
    assert "Is a directory" in told[0][1]
    assert told[0][2:] == [
        str(root / "step00000001"),
        [
            f"{root / 'step00000004'}: shard-00001.safetensors has 0 bytes, not"
            f" {folders.read_manifest(root / 'step00000004')['shards'][1]['bytes']}"
        ],
    ]
    manifest = folders.read_manifest(root / "step00000001")
    assert manifest["shards"][1]["pieces"] == {"backbone.a": [500, 500]}
    with opened(root / "step00000001", manifest) as pieces:
        for key in KEYS:
            whole = pieces.read("backbone.a", key, 0, 1000).numpy()
            assert np.array_equal(whole, snapshot(1).arrays[f"backbone.a|{key}"])
