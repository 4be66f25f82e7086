"""Checkpoint folders: complete or not used, old ones go, damage is named. The tensors' way through
ranks and stages is tested under tests/distributed."""

import json
from pathlib import Path

import pytest

from poa_ds import checkpoint_files
from poa_ds.checkpoint import RunState
from tests.distributed.launch import launch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one process, written by the real engine."""
    out = tmp_path_factory.mktemp("run")
    launch("tests.distributed.two_checkpoints", 1, out)
    return out / "checkpoints"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    import shutil

    return Path(shutil.copytree(made, tmp_path / "checkpoints"))


def test_the_newest_whole_checkpoint_is_found(root: Path) -> None:
    found, refused = checkpoint_files.find(root)
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
    found, refused = checkpoint_files.find(root)
    assert found == root / "step00000001"
    assert len(refused) == 1 and str(newest) in refused[0]
    named = "manifest.json" if damage == "manifest" else shard.name
    assert named in refused[0]


def test_a_half_written_folder_does_not_count(root: Path) -> None:
    (root / ".step00000003.partial").mkdir()
    (root / "step00000004").mkdir()
    assert checkpoint_files.find(root)[0] == root / "step00000002"


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


def test_another_architecture_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"another architecture.*weight_g.*96.*80"):
        launch("tests.distributed.two_checkpoints", 1, tmp_path / "other", load=str(root))


def test_only_the_last_ones_are_kept(made: Path) -> None:
    assert [p.name for p in checkpoint_files.folders(made)] == ["step00000001", "step00000002"]
