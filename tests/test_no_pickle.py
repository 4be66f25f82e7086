"""Files from outside are never unpickled: nothing in them runs, and they are refused by name."""

import ast
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from poa_ds import cli
from poa_ds.checkpoint import folders, reshard
from poa_ds.checkpoint import state as checkpoint
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.data.store.index import ShardFolder
from poa_ds.system.errors import UserError
from tests.support.checkpoints import of_recipe
from tests.support.shards import make_shards
from tests.test_architecture import modules


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.sprung,))


def payloads(sprung: Path) -> dict[str, bytes]:
    """Harmful contents: a pickle, torch's zip around one, and what only looks like safetensors."""
    made = sprung.with_name("made.pt")
    torch.save({"backbone.a": Trap(sprung)}, made)
    assert zipfile.is_zipfile(made)
    raw = pickle.dumps(Trap(sprung))
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return {
        "pickle": raw,
        "torch": made.read_bytes(),
        "length": (1 << 62).to_bytes(8, "little") + raw,
        "header": len(raw).to_bytes(8, "little") + raw,
        "no data": len(header).to_bytes(8, "little") + header,
    }


KINDS = ("pickle", "torch", "length", "header", "no data")


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """A file that exists when a trap has run; the traps do work."""
    path = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(path)))
    assert path.exists()
    path.unlink()
    return path


def disguise(folder: Path, content: bytes, name: str = "shard-00000.safetensors") -> None:
    """Put it in the place of tensors, with a manifest that fits."""
    path = folder / name
    path.write_bytes(content)
    manifest = folders.read_manifest(folder)
    described = {"bytes": len(content), "crc32": folders._crc32(path)}
    record = manifest["extra"] if name == manifest["extra"]["file"] else manifest["shards"][0]
    record |= described
    folders.write_manifest(folder, manifest)
    assert folders.problem(folder) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_tensors_of_a_checkpoint(tmp_path: Path, sprung: Path, kind: str) -> None:
    folder, _ = of_recipe(tmp_path / "checkpoints", 1)
    disguise(folder, payloads(sprung)[kind])
    manifest = folders.read_manifest(folder)
    with pytest.raises(UserError, match="cannot be read"):
        reshard.teacher(folder, manifest)
    assert cli.main(["checkpoint", "convert", str(folder), str(tmp_path / "out")]) == 1
    assert not sprung.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_of_a_checkpoint(tmp_path: Path, sprung: Path, kind: str) -> None:
    folder, _ = of_recipe(tmp_path / "checkpoints", 1)
    (folder / "manifest.json").write_bytes(payloads(sprung)[kind])
    assert "manifest.json" in folders.problem(folder)
    assert checkpoint.find_together(folder.parent)[0] is None and not sprung.exists()


def test_a_checkpoint_of_another_program(tmp_path: Path, sprung: Path) -> None:
    folder = tmp_path / "checkpoints" / "step00000009"
    folder.mkdir(parents=True)
    for name in ("mp_rank_00_model_states.pt", "manifest.pt", ".metadata"):
        (folder / name).write_bytes(payloads(sprung)["torch"])
    found, refused = checkpoint.find_together(folder.parent)
    assert found is None and "manifest.json" in refused[0] and not sprung.exists()


def test_a_manifest_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder, _ = of_recipe(tmp_path / "checkpoints", 1)
    shard = folder / "shard-00000.safetensors"
    manifest = folders.read_manifest(folder)
    shard.rename(tmp_path / "elsewhere")
    manifest["shards"][0]["file"] = "../../elsewhere"
    folders.write_manifest(folder, manifest)
    assert "outside of the folder" in folders.problem(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["teacher.safetensors", "config.json"])
def test_a_teacher(
    tmp_path: Path, sprung: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = of_recipe(tmp_path / "checkpoints", 1)
    run = tmp_path / "run"
    assert cli.main(["checkpoint", "convert", str(folder), str(run), "--teacher"]) == 0
    load_teacher(run)
    (run / name).write_bytes(payloads(sprung)[kind])
    with pytest.raises(UserError, match="missing or damaged"):
        load_teacher(run)
    words = [str(run), "--size", "32x2", "--out", str(tmp_path / "out")]
    assert cli.main(["extract", *words, "--format", "state-dict"]) == 1
    assert name in capsys.readouterr().err and not sprung.exists()


def test_the_index_of_a_shard_folder(tmp_path: Path, sprung: Path) -> None:
    import numpy as np

    make_shards(tmp_path / "data", 5)
    path = tmp_path / "data" / "index.npy"
    np.save(path, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    with pytest.raises((UserError, ValueError)):
        ShardFolder.open(tmp_path / "data")[0]
    assert not sprung.exists()


def test_no_code_asks_for_pickles() -> None:
    """torch.load says weights_only=True, nothing allows numpy's pickles or loads its own."""
    # the published CIFAR-10 is made of pickles: read by an unpickler that knows four names
    allowed = {"data_tools.cifar10": {"pickle.Unpickler"}}
    wrong = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                called = ast.unparse(node)
                forbidden = called in ("pickle.load", "pickle.loads", "pickle.Unpickler")
                if forbidden and called not in allowed.get(name, ()):
                    wrong.append(f"{name}:{node.lineno} {called}")
            if isinstance(node, ast.Call):
                words = {k.arg: ast.unparse(k.value) for k in node.keywords}
                called = ast.unparse(node.func)
                if called == "torch.load" and words.get("weights_only") != "True":
                    wrong.append(f"{name}:{node.lineno} torch.load")
                if words.get("allow_pickle", "False") != "False":
                    wrong.append(f"{name}:{node.lineno} allow_pickle")
    assert not wrong
