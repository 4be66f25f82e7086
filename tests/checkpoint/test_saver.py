"""Checkpoints behind the training's back: retention, and disks that are full, read-only or slow.

What ranks agree on is tested under tests/distributed.
"""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from poa_ds.checkpoint import folders, tensor_file
from poa_ds.checkpoint import state as checkpoint
from poa_ds.checkpoint.saver import Saver
from poa_ds.system.errors import UserError
from tests.support.checkpoints import save, saver, small_disk, snapshot

__all__ = ["small_disk"]  # a fixture


def names(root: Path) -> list[int]:
    return [int(p.name.removeprefix("step")) for p in folders.listed(root)]


def poll_until_idle(s: Saver) -> None:
    deadline = time.monotonic() + 60
    while s._job is not None:
        assert time.monotonic() < deadline
        s.poll()
        time.sleep(0.01)


def test_the_files_are_what_safetensors_reads(tmp_path: Path) -> None:
    arrays = {
        "empty": np.zeros(0, np.float32),
        "a|fp32": np.arange(5, dtype=np.float32),
        "é": np.random.default_rng(0).standard_normal((70, 90)).astype(np.float32),
    }
    size, _ = tensor_file.write(tmp_path / "x", arrays)
    assert size == (tmp_path / "x").stat().st_size
    found = load_file(tmp_path / "x")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array), name


def test_a_snapshot_does_not_follow_the_training() -> None:
    weights = torch.ones(3)
    copy, shared = (checkpoint._array(weights, copied) for copied in (True, False))
    weights += 1
    assert copy.tolist() == [1, 1, 1] and shared.tolist() == [2, 2, 2]


@pytest.mark.parametrize("background", [True, False])
def test_a_checkpoint_holds_what_was_taken(tmp_path: Path, background: bool) -> None:
    s, taken = saver(tmp_path, background=background), snapshot(3)
    s.begin(taken)
    if background:
        poll_until_idle(s)
    folder, refused = checkpoint.find_together(tmp_path)
    assert folder == tmp_path / "step00000003" == s.newest and refused == []
    found = load_file(folder / "shard-00000.safetensors")
    assert all(np.array_equal(found[name], a) for name, a in taken.arrays.items())
    assert load_file(folder / "extra.safetensors")["center"].tolist() == [1, 2, 3]
    manifest = folders.read_manifest(folder)
    assert manifest["state"]["samples_seen"] == 48
    made = manifest["made"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert torch.__version__.startswith(made["torch"]) and made["torch"] and made["deepspeed"]
    assert made["commit"].startswith(head.strip())  # "" where there is no git


def test_training_does_not_wait_for_a_slow_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is a pipe that nobody reads: whoever writes it stands still."""
    s = saver(tmp_path)
    s.begin(snapshot(1))
    s.finish()
    pipe = tmp_path / ".step00000002.partial" / "shard-00000.safetensors"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    s.begin(snapshot(2))
    for _ in range(3):
        s.poll()
    assert names(tmp_path) == [1] and capsys.readouterr().err == ""
    with open(pipe, "rb") as reader:
        while reader.read(1 << 16):
            pass
    poll_until_idle(s)  # a pipe cannot be synced to a disk
    assert names(tmp_path) == [1] and not pipe.parent.exists()
    told = capsys.readouterr().err
    assert "step00000002 could not be saved: rank 0" in told and "Invalid argument" in told
    assert "the newest checkpoint is" in told and "step00000001" in told
    with pytest.raises(UserError, match=r"the same command continues"):
        s.finish()


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    s = saver(tmp_path, saved_step=4)
    s.begin(snapshot(4))  # a stop right after the resume
    assert s._job is None and not tmp_path.joinpath("step00000004").exists()
    s.begin(snapshot(5))
    s.begin(snapshot(5))
    s.finish()
    assert names(tmp_path) == [5]


@pytest.mark.parametrize(
    ("every", "left"), [(0, [8, 9]), (4, [4, 8, 9]), (3, [3, 6, 8, 9]), (9, [8, 9])]
)
def test_the_last_ones_and_milestones_stay(tmp_path: Path, every: int, left: list[int]) -> None:
    s = saver(tmp_path, keep_every_steps=every)
    for at in range(1, 10):
        s.begin(snapshot(at))
    s.finish()
    assert names(tmp_path) == left and not list(tmp_path.glob(".*"))


def test_a_damaged_checkpoint_does_not_push_a_whole_one_out(tmp_path: Path) -> None:
    for at in (1, 2, 3, 7):
        save(tmp_path, at)
    (tmp_path / "step00000002" / "shard-00000.safetensors").unlink()
    (tmp_path / "step00000007" / "manifest.json").write_text("{")
    s = saver(tmp_path)  # goes back to 3, and 2 are to be kept
    s.begin(snapshot(4))
    s.finish()
    assert names(tmp_path) == [3, 4, 7]
    s = saver(tmp_path, keep_last=1)
    s.begin(snapshot(5))
    s.finish()
    assert names(tmp_path) == [5, 7]
    s.begin(snapshot(7))  # reached again: the new one takes its place
    s.finish()
    assert names(tmp_path) == [7] and checkpoint.find_together(tmp_path)[1] == []


def test_a_start_clears_what_a_kill_left(tmp_path: Path) -> None:
    whole = save(tmp_path, 1)
    (tmp_path / ".step00000002.partial").mkdir()
    (tmp_path / ".step00000002.partial" / "shard-00007.safetensors").write_text("old")
    save(tmp_path, 2).rename(tmp_path / ".step00000000.gone")
    whole.rename(tmp_path / ".step00000001.old")  # killed while it was replaced
    saver(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step00000001"]
    assert folders.problem(whole) is None


def test_a_full_disk_costs_no_older_checkpoint_and_not_the_run(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = small_disk / "checkpoints"
    s = saver(root, keep_last=1)
    s.begin(snapshot(1))
    s.begin(snapshot(2, elements=40_000))  # 640 kB
    poll_until_idle(s)
    told = capsys.readouterr().err
    assert "shard-00000.safetensors: No space left on device" in told
    assert "Training goes on" in told and "the newest checkpoint is" in told
    assert checkpoint.find_together(root)[0] == root / "step00000001"
    assert not list(root.glob(".*"))  # the room is free again
    s.begin(snapshot(3))
    poll_until_idle(s)
    assert names(root) == [3]
    s.begin(snapshot(4, elements=40_000))
    poll_until_idle(s)
    s.begin(snapshot(5, elements=40_000))
    with pytest.raises(UserError, match=r"2 in a row.*newest checkpoint is .*step00000003"):
        poll_until_idle(s)
    assert checkpoint.find_together(root) == (root / "step00000003", [])


def test_a_disk_that_became_read_only_is_an_error_that_says_so(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = save(small_disk, 1)
    s = saver(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    s.begin(snapshot(2))
    with pytest.raises(UserError, match="last checkpoint could not be saved"):
        s.finish()
    assert "Read-only file system" in capsys.readouterr().err
    assert checkpoint.find_together(small_disk)[0] == whole


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    s = saver(tmp_path / "file" / "checkpoints")
    s.begin(snapshot(1))
    with pytest.raises(UserError, match="there is no checkpoint"):
        s.finish()
    assert "Not a directory" in capsys.readouterr().err


def test_a_rank_on_another_file_system_is_found_out(tmp_path: Path) -> None:
    taken = snapshot(1)
    partial = tmp_path / ".step00000001.partial"
    partial.mkdir()
    records = []
    for name in ("shard-00000.safetensors", "extra.safetensors"):
        size, crc = tensor_file.write(partial / name, taken.arrays)
        records.append({"file": name, "bytes": size, "crc32": crc, "pieces": taken.pieces})
    elsewhere = records[0] | {"file": "shard-00001.safetensors"}
    manifest = {"format": folders.FORMAT, **taken.about, "made": {}}
    manifest |= {"shards": [records[0], elsewhere], "extra": records[1]}
    with pytest.raises(UserError, match=r"shard-00001.*missing: do all hosts share"):
        folders.commit(tmp_path, 1, manifest)
    assert names(tmp_path) == []
