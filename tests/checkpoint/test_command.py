"""`poa-ds checkpoint`: the table tells the truth, and a converted checkpoint is the same one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from poa_ds import cli
from poa_ds.checkpoint import folders
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.checkpoint.state import KEYS
from tests.support.checkpoints import of_recipe, save


def test_inspect_shows_every_checkpoint_and_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run" / "checkpoints"
    for at in (100, 1200):
        save(root, at)
    assert cli.main(["checkpoint", "inspect", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["step00000100", "100", "1,600"] and "whole" in lines[1]
    assert lines[2].split()[:3] == ["step00001200", "1,200", "19,200"]
    assert lines[3].startswith("step00001200 was made by") and "torch 2." in lines[3]
    path = root / "step00001200" / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cli.main(["checkpoint", "inspect", str(root), "--quick"]) == 0
    assert cli.main(["checkpoint", "inspect", str(root)]) == 1
    assert "damaged: shard-00000.safetensors does not have its" in capsys.readouterr().out
    (root / "step00000100" / "manifest.json").unlink()
    assert cli.main(["checkpoint", "inspect", str(root / "step00000100")]) == 1
    assert "manifest.json cannot be read (No such file" in capsys.readouterr().out


def test_inspect_tells_what_happened_to_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "checkpoints", 100)
    (tmp_path / "events.jsonl").write_text(
        '{"step": 0, "time": 0.0, "kind": "start", "text": "2 ranks"}\n'
        '{"step": 1100, "time": 60.0, "kind": "stop", "text": ""}\n'
    )
    assert cli.main(["checkpoint", "inspect", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "1970-01-01 00:00  step 0: start 2 ranks",
        "1970-01-01 00:01  step 1,100: stop",
    ]


def test_inspect_lists_what_differs_between_two_recipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = of_recipe(tmp_path / "one" / "checkpoints", 3)
    other, _ = of_recipe(tmp_path / "other" / "checkpoints", 3, "seed=7")
    assert cli.main(["checkpoint", "inspect", str(tmp_path / "one"), "--diff", str(other)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-2].endswith(f"{other} -> {one}: ") and out[-1] == "  seed: 7 -> 0"
    assert cli.main(["checkpoint", "inspect", str(one), "--diff", str(one)]) == 0
    assert "no difference" in capsys.readouterr().out


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_converted_checkpoint_has_the_same_elements(tmp_path: Path, ranks: int) -> None:
    folder, taken = of_recipe(tmp_path / "run" / "checkpoints", 5)
    between, out = tmp_path / "between", tmp_path / "out"
    convert = ["checkpoint", "convert"]
    assert cli.main([*convert, str(tmp_path / "run"), str(between), "--ranks", "4"]) == 0
    assert cli.main([*convert, str(between), str(out), "--ranks", str(ranks)]) == 0
    assert folders.problem(out) is None
    manifest = folders.read_manifest(out)
    files = [load_file(out / record["file"]) for record in manifest["shards"]]
    assert len(files) == ranks
    for name in taken.pieces:
        for key in KEYS:
            places = [record["pieces"].get(name) for record in manifest["shards"]]
            parts = [
                (place[0], file[f"{name}|{key}"])
                for place, file in zip(places, files, strict=True)
                if place
            ]
            whole = np.concatenate([part for _, part in sorted(parts, key=lambda p: p[0])])
            assert np.array_equal(whole, taken.arrays[f"{name}|{key}"])
    before = folders.read_manifest(folder)
    same = before.keys() - {"shards", "ranks"}
    assert all(manifest[key] == before[key] for key in same)


def test_the_teacher_of_a_checkpoint_is_one_that_the_other_commands_read(tmp_path: Path) -> None:
    folder, taken = of_recipe(tmp_path / "checkpoints", 5)
    out = tmp_path / "teacher"
    assert cli.main(["checkpoint", "convert", str(folder), str(out), "--teacher"]) == 0
    model, recipe, step = load_teacher(out)
    assert step == 5 and recipe.backbone.width.max == 48
    for name, tensor in model.state_dict().items():
        wanted = torch.from_numpy(taken.arrays[f"backbone.{name}|ema"]).view(tensor.shape)
        assert torch.equal(tensor, wanted), name


def test_wrong_words_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "run" / "checkpoints", 1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    convert = ["checkpoint", "convert", str(folder)]
    for words, status, message in (
        (["checkpoint", "inspect", "nowhere"], 1, "nowhere: no such folder"),
        (["checkpoint", "inspect", str(tmp_path / "full")], 1, "holds no checkpoint"),
        ([*convert, str(tmp_path / "full")], 2, "not an empty folder"),
        ([*convert, "out", "--ranks", "0"], 2, "--ranks 0"),
        ([*convert, "out", "--ranks", "2", "--teacher"], 2, "not together"),
        ([*convert, str(tmp_path / "out"), "--teacher"], 1, "holds no recipe"),
    ):
        assert cli.main(words) == status, words
        assert message in capsys.readouterr().err
    shutil.rmtree(folder)
    folder.mkdir()
    assert cli.main([*convert, str(tmp_path / "out")]) == 1
    assert "no checkpoint is whole" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
