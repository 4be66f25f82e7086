"""Checkpoint folders: complete or not used, old ones go, damage is named. The tensors' way through
ranks and stages is tested under tests/distributed."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from poa_ds.checkpoint import folders, reshard
from poa_ds.checkpoint import state as checkpoint
from poa_ds.checkpoint.state import RunState
from poa_ds.system.errors import UserError
from tests.distributed.programs.launch import launch
from tests.test_no_pickle import disguise, payloads


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one process, written by the real engine."""
    out = tmp_path_factory.mktemp("run")
    launch("tests.distributed.programs.two_checkpoints", 1, out)
    return out / "checkpoints"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "checkpoints"))


def test_the_newest_whole_checkpoint_is_found(root: Path) -> None:
    found, refused = checkpoint.find_together(root)
    assert found == root / "step00000002" and refused == []
    assert (root / "latest").read_text() == "step00000002"
    assert not list(root.glob(".*"))


def test_nothing_in_a_checkpoint_is_a_pickle(root: Path) -> None:
    assert {p.suffix for p in root.rglob("*") if p.is_file()} == {".json", ".safetensors", ""}


@pytest.mark.parametrize("damage", ["bit", "cut", "missing", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_named(root: Path, damage: str) -> None:
    newest = root / "step00000002"
    shard = newest / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 4
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-1])
    elif damage == "missing":
        shard.unlink()
    else:
        (newest / "manifest.json").write_text('{"format": 1')
    found, refused = checkpoint.find_together(root)
    assert found == root / "step00000001"
    assert len(refused) == 1 and str(newest) in refused[0]
    named = "manifest.json" if damage == "manifest" else shard.name
    assert named in refused[0]


def test_a_half_written_folder_does_not_count(root: Path) -> None:
    (root / ".step00000003.partial").mkdir()
    (root / "step00000004").mkdir()
    assert checkpoint.find_together(root)[0] == root / "step00000002"


def test_the_manifest_tells_everything_that_is_not_a_tensor(root: Path) -> None:
    manifest = json.loads((root / "step00000002" / "manifest.json").read_text())
    state = RunState.of(manifest["state"])
    assert state.step == 2 and state.samples_seen == 32 and state.tracking == {"run": "abc"}
    assert manifest["adam_steps"]["backbone/decayed"] == 2
    assert manifest["shapes"]["backbone.blocks.0.attn.qkv.weight"] == [192, 64]
    pieces = manifest["shards"][0]["pieces"]
    for name, shape in manifest["shapes"].items():
        size = 1
        for n in shape:
            size *= n
        assert pieces[name] == [0, size]


def test_loading_names_another_architecture_and_runs_no_pickle(root: Path, tmp_path: Path) -> None:
    disguised, trap = [], payloads(tmp_path / "sprung")
    for kind in ("pickle", "torch"):
        for name in ("shard-00000.safetensors", checkpoint.EXTRA):
            disguised.append(shutil.copytree(root, tmp_path / f"{kind} {name}"))
            disguise(disguised[-1] / "step00000002", trap[kind], name)
    given = {"load": str(root), "garbage": [str(place) for place in disguised]}
    said = launch("tests.distributed.programs.two_checkpoints", 1, tmp_path / "other", **given)
    assert re.search(r"another architecture.*weight_g.*96.*80", said[0])
    for place, refusal in zip(disguised, said[1:], strict=True):
        assert place.name.split()[1] in refusal and "cannot be read" in refusal
    assert not (tmp_path / "sprung").exists()


def test_the_fp16_loss_scale_goes_on_as_if_nothing_had_happened(made: Path) -> None:
    for found in json.loads((made.parent / "result.json").read_text()):
        assert len(set(found["whole"])) > 4 and len(found["continued"]) == 60
        assert all(scales == found["whole"] for scales in found["continued"])


def test_the_teacher_taken_out_of_a_checkpoint_is_the_engines(made: Path) -> None:
    folder = made / "step00000002"
    found = reshard.teacher(folder, folders.read_manifest(folder))
    wanted = load_file(made.parent / "teacher.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("pointer", [b"step00000009", b"\xff\x00", b"../elsewhere"])
def test_a_pointer_to_nothing_is_said_and_the_newest_is_used(root: Path, pointer: bytes) -> None:
    (root / "latest").write_bytes(pointer)
    found, refused = checkpoint.find_together(root)
    assert found == root / "step00000002"
    assert len(refused) == 1 and "latest" in refused[0] and "is not there" in refused[0]


def test_what_is_damaged_wholly_is_never_taken_for_a_fresh_start(root: Path) -> None:
    for folder in folders.listed(root):
        shutil.rmtree(folder)
    found, refused = checkpoint.find_together(root)
    assert found is None and len(refused) == 1  # `latest` names one
    (root / "latest").unlink()
    assert checkpoint.find_together(root) == (None, [])
    (root / "step00000001").mkdir()
    assert "manifest.json" in checkpoint.find_together(root)[1][0]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    assert checkpoint.find_together(tmp_path / "absent") == (None, [])
    (tmp_path / "file").touch()
    (tmp_path / "unmounted").symlink_to(tmp_path / "absent")
    for name in ("file", "unmounted"):
        with pytest.raises(UserError, match=f"{name} cannot be listed"):
            checkpoint.find_together(tmp_path / name)


def test_any_flipped_bit_of_a_manifest_is_noticed(root: Path) -> None:
    path = root / "step00000002" / "manifest.json"
    content = path.read_bytes()
    rng = random.Random(0)
    for place in [0, len(content) - 1, *rng.sample(range(len(content)), 60)]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        problem = folders.problem(path.parent, checksums=False)
        assert problem and "manifest.json" in problem, (place, content[place], flipped[place])


def test_only_the_last_ones_are_kept(made: Path) -> None:
    assert [p.name for p in folders.listed(made)] == ["step00000001", "step00000002"]
