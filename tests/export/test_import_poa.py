"""Published checkpoints under our names: conversion there and back, and the command."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.export import import_poa
from poa_ds.model.heads import HeadBank
from poa_ds.model.row_orders import head_major, third_major
from poa_ds.model.space import Subnet
from poa_ds.model.vit.names import from_published, to_timm
from poa_ds.system.errors import UserError
from tests.conftest import shared
from tests.model.swin.test_network import load as load_arrays
from tests.model.test_backbones import arrays as step_arrays
from tests.model.vit.test_network import load as load_vit
from tests.model.vit.test_network import published_model
from tests.support.shards import make_shards

RECIPE = {
    "backbone": {
        "width": {"min": 64, "max": 192, "step": 32},
        "depth": {"min": 3, "max": 6, "step": 1},
        "head_dim": 32,
        "names": {"small": "64x3", "large": "192x6"},
    },
    "heads": {"prototypes": [16, 24, 40, 64], "hidden": 96, "bottleneck": 32},
    "crops": {"global_size": 64, "local_size": 32},
    "evaluation": {"resize": 64, "crop": 64, "sizes": "all"},
}


def published_state() -> dict[str, torch.Tensor]:
    """The published teacher as its code saves it: backbone and heads side by side."""
    with np.load(shared("golden/03_head/state_dict_nl3.npz")) as arrays:
        heads = {f"dino_head.{n}": torch.from_numpy(arrays[n]).float() for n in arrays.files}
    return {f"backbone.{name}": t for name, t in load_vit("state_dict.npz").items()} | heads


def recipe_file(folder: Path, **changed: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changed))
    return path


def run(folder: Path, content: object, recipe: Path) -> int:
    torch.save(content, folder / "teacher_checkpoint.pth")
    words = ["--out", str(folder / "out"), "--published", str(recipe)]
    return cli.main(["import", str(folder / "teacher_checkpoint.pth"), *words])


def test_rows_of_qkv_go_there_and_back() -> None:
    rows = torch.arange(3 * 4 * 2).float()  # 4 heads of 2 channels
    ours = head_major(rows, 2)
    assert ours[:6].tolist() == [0, 1, 8, 9, 16, 17]  # q, k and v of the first head
    assert torch.equal(third_major(ours, 2), rows)


def test_names_of_timm_are_read_and_written() -> None:
    timm = pytest.importorskip("timm")
    plain = timm.create_model(
        "vit_small_patch16_224", embed_dim=192, depth=6, num_heads=6, init_values=1.0,
        num_classes=0, img_size=64,
    )  # fmt: skip
    state = plain.state_dict()
    ours = from_published(state, head_dim=32)
    model = published_model(torch.float32)
    assert set(model.state_dict()) - set(ours) == {"embed.mask_token"}
    model.load_state_dict(ours, strict=False)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        difference = model(images, Subnet(192, 6)) - plain.eval().forward_features(images)
    assert difference.abs().max() < 1e-5
    back = to_timm(ours, model.shape)
    assert back.keys() == state.keys() and all(torch.equal(back[n], state[n]) for n in state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_becomes_a_teacher(tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in published_state().items()}
    assert run(tmp_path, {"teacher": state, "iteration": 3}, recipe_file(tmp_path)) == 0
    model, recipe, step = load_teacher(tmp_path / "out")
    assert step == 0 and recipe.heads.hidden == 96
    for name, tensor in published_model(torch.float32).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    inputs, outputs = load_vit("inputs.npz"), load_vit("outputs_f64.npz")
    wanted = outputs["w128_d4/64/x_norm_clstoken"]
    with torch.no_grad():
        got = model(inputs["img64"].float(), Subnet(128, 4))[:, 0]
    assert (got - wanted).abs().max() < 1e-4
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "out" / "teacher.safetensors")
    heads = HeadBank(192, (16, 24, 40, 64), hidden=96, bottleneck=32)
    names = {f"heads.{name}" for name in heads.state_dict()}
    assert names == {name for name in stored if not name.startswith("backbone.")}


def test_chunked_blocks_and_missing_heads_are_fine(tmp_path: Path) -> None:
    state = {n: t for n, t in load_vit("state_dict.npz").items()}
    chunked = {n.replace("blocks.", f"blocks.{n.split('.')[1]}.", 1): t for n, t in state.items()
               if n.startswith("blocks.")}  # fmt: skip
    chunked |= {n: t for n, t in state.items() if not n.startswith("blocks.")}
    assert run(tmp_path, chunked, recipe_file(tmp_path)) == 0
    assert cli.main(["sizes", str(tmp_path / "out")]) == 0


def test_an_imported_teacher_can_be_extracted(tmp_path: Path) -> None:
    assert run(tmp_path, {"teacher": published_state()}, recipe_file(tmp_path)) == 0
    words = ["--size", "96x5", "--out", str(tmp_path / "model"), "--check"]
    assert cli.main(["extract", str(tmp_path / "out"), *words]) == 0


OTHERS = {
    "swin": {
        "width": {"min": 8, "max": 16, "step": 8},
        "stages": [[1, 1], [1, 1], [2, 3], [1, 1]],
        "head_dim": 8,
        "names": {"tiny": "8x2", "base": "16x3"},
    },
    "resnet": {
        "width": {"min": 8, "max": 16, "step": 4},
        "stages": [[1, 1], [1, 2], [1, 2], [1, 1]],
        "norm_groups": 4,
        "names": {"R50": "12x1-1-2-1", "R152": "16x1-2-2-1"},
    },
}


@pytest.mark.parametrize(("kind", "size"), [("swin", "tiny"), ("resnet", "R50")])
def test_a_published_swin_or_resnet_does_all_that_a_vit_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, size: str
) -> None:
    """The teacher of golden/05_step: its extracted sizes, in torch alone, compute the same."""
    backbone = OTHERS[kind] | {"name": kind, "patch_size": 4, "small_bias": 2.0}
    heads = {"prototypes": [16, 24, 32, 48], "hidden": 64, "bottleneck": 16}
    recipe = recipe_file(tmp_path, backbone=backbone, heads=heads)
    published = {
        f"module.{name}": tensor for name, tensor in step_arrays(f"{kind}_teacher").items()
    }
    assert run(tmp_path, {"teacher": published, "iteration": 7}, recipe) == 0
    model, found, step = load_teacher(tmp_path / "out")
    assert step == 0 and found.backbone.name == kind and model.space.parse(size)
    out = str(tmp_path / "out")
    assert cli.main(["sizes", out]) == 0 and f" {size} " in capsys.readouterr().out
    words = ["--size", size, "--format", "state-dict", "--out", str(tmp_path / "model"), "--check"]
    assert cli.main(["extract", out, *words]) == 0
    assert "largest difference" in capsys.readouterr().out
    make_shards(tmp_path / "bank", 24)
    make_shards(tmp_path / "queries", 9, seed=1)
    places = ["--bank", str(tmp_path / "bank"), "--queries", str(tmp_path / "queries")]
    assert cli.main(["eval", "knn", out, "--sizes", size, *places, "--workers", "0"]) == 0
    del published["module.backbone.mask_token"]
    assert run(tmp_path / "out", {"teacher": published}, recipe) == 1
    told = {"swin": "they are a Swin, heads", "resnet": "they are a ResNet, heads"}[kind]
    errors = capsys.readouterr().err
    assert told in errors and "missing: backbone.embed.mask_token" in errors


@pytest.mark.parametrize(
    ("kind", "beyond"),
    [("swin", "stages.2.blocks.2."), ("resnet", "layer3.layers.1.")],
)
def test_blocks_beyond_the_recipe_are_not_taken_for_those_of_the_next_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, beyond: str
) -> None:
    """Counted through the stages, they have the numbers of blocks that do fit."""
    backbone = OTHERS[kind] | {"name": kind, "patch_size": 4, "names": {}}
    backbone["stages"] = [*backbone["stages"]]
    least, most = backbone["stages"][2]
    backbone["stages"][2] = [least, most - 1]
    published = {"teacher": step_arrays(f"{kind}_teacher")}
    heads = {"prototypes": [16, 24, 32, 48], "hidden": 64, "bottleneck": 16}
    assert run(tmp_path, published, recipe_file(tmp_path, backbone=backbone, heads=heads)) == 1
    assert f"unexpected: backbone.{beyond}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_imported_swin_has_the_published_features(tmp_path: Path) -> None:
    backbone = OTHERS["swin"] | {"name": "swin", "patch_size": 4, "names": {"base": "24x6"}}
    backbone |= {"width": {"min": 8, "max": 24, "step": 8}}
    backbone |= {"stages": [[2, 2], [2, 2], [2, 6], [2, 2]]}
    state = {f"backbone.{n}": t for n, t in load_arrays("02_swin/state_dict.npz").items()}
    assert run(tmp_path, {"teacher": state}, recipe_file(tmp_path, backbone=backbone)) == 0
    model, _, _ = load_teacher(tmp_path / "out")
    images, wanted = load_arrays("02_swin/inputs.npz"), load_arrays("02_swin/outputs_f64.npz")
    for side in (64, 48):  # 48: maps of odd sides
        with torch.no_grad():
            got = model(images[f"img{side}"].float(), Subnet(8, 2))[:, 0]
        assert (got - wanted[f"w8_d2/{side}/x_norm_clstoken"]).abs().max() < 1e-4


def changed(name: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = published_state()
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("backbone.norm.norm.bias", None, "missing: backbone.norm.bias"),
        ("backbone.register_tokens", torch.zeros(1), "unexpected: backbone.register_tokens"),
        (
            "backbone.pos_embed",
            torch.zeros(1, 197, 192),
            "another shape: backbone.embed.pos_embed [1, 197, 192] instead of [1, 17, 192]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    tensor: torch.Tensor | None,
    message: str,
) -> None:
    assert run(tmp_path, {"teacher": changed(name, tensor)}, recipe_file(tmp_path)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_another_network_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"teacher": published_state()}
    heads = RECIPE["heads"] | {"prototypes": [16, 24]}
    assert run(tmp_path, state, recipe_file(tmp_path, heads=heads)) == 1
    assert "they are a ViT 192x6, patch 16, heads [16, 24, 40, 64]" in capsys.readouterr().err
    backbone = RECIPE["backbone"] | {"head_dim": 40, "width": {"min": 80, "max": 200, "step": 40}}
    backbone["names"] = {}
    assert run(tmp_path, state, recipe_file(tmp_path, backbone=backbone)) == 1
    assert "does not divide into heads of backbone.head_dim 40" in capsys.readouterr().err


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("trapped"),))


def test_files_that_are_no_checkpoints_are_refused_without_running_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path, {"teacher": {"a": Trap()}}, recipe_file(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "holds more than tensors (" in said and "torch.save" in said
    assert "weights_only" not in said and "Traceback" not in said
    assert not (tmp_path / "trapped").exists()
    assert run(tmp_path, {"model": {"a": 1}}, recipe_file(tmp_path)) == 1
    assert "holds no `teacher` with named tensors" in capsys.readouterr().err
    swin = {"teacher": {"backbone.stages.0.blocks.0.norm1.norm.bias": torch.zeros(8)}}
    assert run(tmp_path, swin, recipe_file(tmp_path)) == 1
    assert "they are a Swin, no heads" in capsys.readouterr().err
    (tmp_path / "bad.pth").write_bytes(b"PK nothing")
    words = ["--out", "out", "--published", str(recipe_file(tmp_path))]
    for name in ("bad.pth", "absent.pth"):
        assert cli.main(["import", name, *words]) == 1
        assert name in capsys.readouterr().err
    assert cli.main(["import", "bad.pth", *words, "--widths", "64,192"]) == 2
    assert "--published: its recipe says what SOURCE is" in capsys.readouterr().err
    more = ["--rebase", "rotate", "--input-scale", "0.5", "--download"]
    assert cli.main(["import", "bad.pth", *words, *more]) == 2
    assert "leave out --rebase, --input-scale, --download" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert cli.main(["import", "bad.pth", *words]) == 2


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(2)},
        {"teacher": [torch.zeros(2)]},
        {"teacher": torch.zeros(2)},
        {"teacher": {"teacher": {"a": torch.zeros(2)}}},
        {"teacher": {"backbone.blocks.0.attn.qkv.weight": torch.zeros(())}},
    ],
    ids=["numbers", "a list", "a tensor", "deeper", "no rows"],
)
def test_tensors_of_any_arrangement_are_refused_in_one_sentence(
    content: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, content, recipe_file(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "holds no `teacher` with named tensors" in said or "does not divide into heads" in said


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x80",
        b"(" * 99,
        b"PK\x03\x04" + bytes(99),
        pickle.dumps([1])[:5],
        b"\x80\2.",
    ],
    ids=["empty", "text", "cut", "open", "zip", "short", "nothing"],
)
def test_bytes_of_any_kind_are_refused_in_one_line_of_our_own(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "odd\x1b[2J.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        import_poa.read_checkpoint(path)
    said = str(error.value)
    assert "odd\\x1b[2J.pth is damaged" in said and "\n" not in said
    assert "weights_only" not in said
