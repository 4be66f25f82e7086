"""Extracted models against the published extraction and against the elastic network itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from poa_ds import cli
from poa_ds.checkpoint.deployed import publish
from poa_ds.evaluate.features import random_weights
from poa_ds.export.extract import extract, fold_layer_scale
from poa_ds.export.folder import Export, check_images, reload
from poa_ds.methods import frozen
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError
from tests.conftest import shared
from tests.evaluate.test_knn import RECIPE, tiny
from tests.model.vit.test_network import published_model
from tests.support.shards import make_shards


def run_folder(folder: Path, *overrides: str) -> Recipe:
    """A run with one teacher whose every weight is random, biases and norms too."""
    recipe = tiny(*overrides)
    model, generator = random_weights(recipe), torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor += 0.3 * noise if tensor.ndim == 1 or "embed" in name else 0.1 * noise
    publish(folder, {f"backbone.{n}": t for n, t in model.state_dict().items()}, recipe, 7)
    return recipe


def test_weights_are_those_of_the_published_extraction_with_the_final_norm() -> None:
    with np.load(shared("golden/08_extract/vit_small.npz")) as arrays:
        wanted = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    model = published_model(torch.float32)
    found = extract(model, Subnet(64, 3))
    del wanted["mask_token"]
    for name, tensor in wanted.items():
        assert torch.equal(found.pop(name), tensor), name
    assert sorted(found) == ["norm.bias", "norm.weight"]  # the published tool forgets them
    assert torch.equal(found["norm.weight"], model.norm.weight[:64])


def test_float64_stays_exact_and_the_cast_comes_last() -> None:
    pytest.importorskip("timm")
    import timm

    model, subnet = published_model(torch.float64), Subnet(160, 5)
    model.norm.weight.data += torch.linspace(0, 1, 192)
    plain = timm.create_model(
        "vit_small_patch16_224",
        img_size=64,
        embed_dim=160,
        depth=5,
        num_heads=5,
        init_values=1.0,
        num_classes=0,
    ).double()
    plain.load_state_dict(extract(model, subnet, torch.float64), strict=True)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        difference = model(images, subnet) - plain.eval().forward_features(images)
    assert difference.abs().max() < 1e-12
    folded = extract(model.float(), subnet)["blocks.1.mlp.fc1.weight"]
    low = extract(model, subnet, torch.bfloat16)["blocks.1.mlp.fc1.weight"]
    assert torch.equal(low, folded.bfloat16())


@pytest.mark.parametrize("size", ["32x2", "48x2", "48x3"])
@pytest.mark.parametrize("fold", [False, True])
def test_timm_opens_the_folder_by_itself_and_computes_the_same(
    tmp_path: Path, size: str, fold: bool
) -> None:
    run_folder(tmp_path / "run")
    words = ["--size", size, "--out", str(tmp_path / "out"), "--check"]
    words += ["--fold-layerscale"] if fold else []
    assert cli.main(["extract", str(tmp_path / "run"), *words]) == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert any(name.endswith("gamma") for name in stored) is not fold
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "out").stat().st_mode & 0o666}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    import timm

    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    wanted = tiny()
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, 32, 32) and data["crop_pct"] == 1.0
    assert data["interpolation"] == "bicubic" and tuple(data["mean"]) == wanted.augmentation.mean
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():  # what a user calls: the class token, without a classifier
        assert torch.equal(model(images), model.forward_features(images)[:, 0])


@pytest.mark.parametrize("style", ["timm", "state-dict"])
def test_the_printed_lines_work(
    style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "run")
    words = ["--size", "small", "--out", str(tmp_path / "out"), "--format", style]
    assert cli.main(["extract", str(tmp_path / "run"), *words]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if " = " in line]
    assert len(lines) == 3
    program = ["import runpy, timm, torch", "images = torch.zeros(2, 3, 32, 32)", *lines]
    names: dict[str, torch.Tensor] = {}
    exec("\n".join(program), names)
    assert names["feature"].shape == (2, 32) and names["features"].shape == (2, 17, 32)


def test_several_sizes_get_a_folder_each(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    words = ["--format", "state-dict", "--check"]
    out = tmp_path / "out"
    command = ["extract", str(tmp_path / "run"), "--out", str(out), *words]
    assert cli.main([*command, "--size", "small,48x3"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["w0032_d02", "w0048_d03"]
    names = load_file(out / "w0048_d03" / "state_dict.safetensors")
    assert "blocks.2.attn.qkv.weight" in names and "mask_token" not in names
    about = json.loads((out / "w0048_d03" / "config.json").read_text())
    assert about["model_args"]["num_heads"] == 3 and about["poa_ds"]["step"] == 7
    assert cli.main([*command, "--size", "all"]) == 0  # over the ones that are there
    assert len(list(out.iterdir())) == 4


def test_check_uses_the_images_of_the_evaluation_where_they_are(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "val", 12)
    images, what = check_images(tiny(f"evaluation.queries={tmp_path / 'val'}"))
    assert images.shape == (8, 3, 32, 32) and what == f"images of {shards.path}"
    assert images.abs().max() < 3  # normalised
    assert check_images(tiny("evaluation.queries=nowhere"))[1] == "random images"
    given, what = check_images(tiny("evaluation.queries=nowhere"), shards.path)
    assert torch.equal(given, images) and what == f"images of {shards.path}"
    with pytest.raises(UserError, match="nowhere"):
        check_images(tiny(), tmp_path / "nowhere")


def test_an_export_that_differs_is_reported_and_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model, subnet):  # forgets the factor of one layer
        state = extract(model, subnet)
        state["blocks.0.attn.proj.weight"] *= subnet.width / model.space.intact.width
        return state

    run_folder(tmp_path / "run")
    monkeypatch.setattr("poa_ds.deploy.extract.extract", wrong)
    words = ["--size", "32x2", "--out", str(tmp_path / "out"), "--check"]
    assert cli.main(["extract", str(tmp_path / "run"), *words]) == 1
    assert "32x2: the exported model differs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_only_its_own_folders_are_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "run")
    command = ["extract", str(tmp_path / "run"), "--size", "32x2", "--out"]
    out = tmp_path / "out"
    out.mkdir()
    assert cli.main([*command, str(out)]) == 0
    assert cli.main([*command, str(out), "--format", "state-dict"]) == 0
    assert not (out / "model.safetensors").exists()
    (out / "notes.txt").write_text("mine")
    assert cli.main([*command, str(out)]) == 1
    assert "is not an export of poa-ds" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"architecture": "mine"}')
    assert cli.main([*command, str(other)]) == 1
    (tmp_path / "file").write_text("mine")
    assert cli.main([*command, str(tmp_path / "file")]) == 1
    assert cli.main([*command, str(tmp_path / "file" / "below")]) == 1


def test_an_interrupted_export_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = run_folder(tmp_path / "run")
    model, subnet, out = random_weights(recipe), Subnet(32, 2), tmp_path / "out"
    export = Export(model, recipe, 7, "here")
    export.write(subnet, extract(model, subnet), out)
    before = (out / "model.safetensors").read_bytes()

    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("poa_ds.export.folder.check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.write(subnet, extract(model, Subnet(32, 2)), out, torch.zeros(1, 3, 32, 32))
    assert (out / "model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_a_full_disk_is_reported_and_the_folder_before_survives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    run_folder(tmp_path / "run")
    command = ["extract", str(tmp_path / "run"), "--size", "32x2", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    monkeypatch.setattr("poa_ds.export.folder.save_file", full)
    assert cli.main(command) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_vit_of_the_imagenet_recipe_opens_in_timm(tmp_path: Path) -> None:
    file = RECIPE.with_name("vit_l16_in1k.yaml")
    narrow = ("backbone.width={min: 128, max: 192, step: 64}", "backbone.names={odd: 128x12}")
    shallow = ("backbone.depth={min: 12, max: 13, step: 1}", "evaluation.sizes=odd")
    recipe = load.recipe(file, [*narrow, *shallow])
    model, subnet = random_weights(recipe), Subnet(128, 12)
    state, out = extract(model, subnet), tmp_path / "out"
    images = torch.randn(1, 3, 224, 224)
    assert Export(model, recipe, 0, "here").write(subnet, state, out, images) < 1e-4
    folded = fold_layer_scale(state)
    assert Export(model, recipe, 0, "here").write(subnet, folded, out, images) < 1e-4
    data = reload(out).pretrained_cfg
    assert data["crop_pct"] == 0.875 and data["input_size"] == (3, 224, 224)


def test_a_damaged_or_foreign_teacher_is_named(tmp_path: Path) -> None:
    from poa_ds.checkpoint.deployed import load_teacher

    recipe = run_folder(tmp_path)
    folder = tmp_path / "teacher" / "step00000007"
    assert load_teacher(folder)[2] == load_teacher(tmp_path, 7)[2] == 7
    weights = (folder / "teacher.safetensors").read_bytes()
    (folder / "teacher.safetensors").write_bytes(weights[:-5])
    with pytest.raises(UserError, match=r"teacher\.safetensors is missing or damaged"):
        load_teacher(tmp_path)
    (folder / "teacher.safetensors").write_bytes(weights)
    about = json.loads((folder / "config.json").read_text())
    about["config"]["backbone"]["depth"]["max"] = 4
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"does not fit its config.json: missing: blocks\.3"):
        load_teacher(tmp_path)
    (folder / "config.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(UserError, match="has format 2"):
        load_teacher(tmp_path)
    with pytest.raises(UserError, match="holds no teacher"):
        load_teacher(tmp_path / "teacher")
    with pytest.raises(UserError, match="no such folder"):
        load_teacher(tmp_path / "absent")
    assert recipe.crops.global_size == 32


def test_a_size_that_was_left_untrained_is_refused(tmp_path: Path, capsys) -> None:
    recipe = run_folder(tmp_path / "run", "objective.method=single")
    words = ["extract", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--size"]
    smallest, *_, intact = map(str, derived.space(recipe).subnets())
    assert cli.main([*words, smallest]) == 2
    said = capsys.readouterr().err
    assert f"size {smallest}: objective.method single has trained {intact} alone" in said
    with pytest.raises(UserError, match=r"has trained .* alone"):
        frozen.find(f"{tmp_path / 'run'}:{smallest}", recipe.crops.global_size)
    assert cli.main([*words, intact]) == 0
