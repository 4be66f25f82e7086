"""A new run begins with a finished network: weights exactly, what does not fit refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from poa_ds.checkpoint.deployed import load_teacher, publish
from poa_ds.cli import main
from poa_ds.engine.networks import Networks
from poa_ds.export.extract import extract
from poa_ds.export.folder import reload
from poa_ds.export.start import begin
from poa_ds.methods.method import method
from poa_ds.model import form
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError
from tests.distributed.programs.worker import recipe_with
from tests.distributed.test_backbones_ranks import BACKBONES
from tests.export.test_init import run_of
from tests.methods.test_sweet import tree

LAYER = {"patch_size": 8, "head_dim": 16, "init": "torch", "layer_scale": 0.5, "drop_path": 0.0}


def vit(width: int, depth: int, **more: object) -> Recipe:
    """A recipe whose largest size that is."""
    sizes = {"width": {"min": 32, "max": width, "step": 16}, "depth": {"min": 2, "max": depth}}
    return recipe_with(backbone=LAYER | sizes | more)


def networks(recipe: Recipe, seed: int = 9) -> Networks:
    return method(replace(recipe, seed=seed)).networks()


def moved(networks: Networks) -> Networks:
    """Nothing is as it starts, and the average is not the student."""
    for parameter in networks.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return networks


def source(folder: Path, recipe: Recipe) -> Path:
    """A run whose teacher is not as it starts."""
    publish(folder, dict(moved(networks(recipe, 0)).teacher.state_dict()), recipe, 7)
    return folder


@pytest.mark.parametrize("kind", ["vit", *BACKBONES])
def test_plain_names_lead_back_to_every_tensor(kind: str) -> None:
    recipe = recipe_with(**({"backbone": BACKBONES[kind]} if kind != "vit" else {}))
    torch.manual_seed(3)
    model = backbone(recipe)
    for parameter in model.parameters():
        parameter.data.normal_()
    state = extract(model, model.space.intact)
    found = form.of(kind).from_plain(state, model.shape)
    wanted = {
        name: tensor for name, tensor in model.state_dict().items() if "mask_token" not in name
    }
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("more", [["timm"], ["state-dict"], ["timm", "--fold-layerscale"]])
def test_student_and_teacher_compute_what_the_extracted_size_computes(
    tmp_path: Path, more: list[str]
) -> None:
    run, out = source(tmp_path / "run", vit(64, 4)), tmp_path / "48x3"
    words = ["extract", str(run), "--size", "48x3", "--out", str(out), "--format", *more]
    assert main(words) == 0
    recipe, images = vit(48, 3), torch.randn(2, 3, 32, 32)
    ours, fresh = networks(recipe), networks(recipe)
    begin(ours, str(out))
    wanted = reload(out)(images)
    for branch in (ours.student, ours.teacher):
        feature = branch.backbone(images, branch.backbone.space.intact)[:, 0]
        torch.testing.assert_close(feature, wanted, rtol=0, atol=2e-5)
        heads = fresh.student.heads.state_dict()
        assert all(torch.equal(t, heads[n]) for n, t in branch.heads.state_dict().items())


ROTARY = {"positions": "rope", "norm_eps": 1e-5, "registers": 4}


@pytest.mark.parametrize(
    "more",
    [
        ROTARY,
        ROTARY | {"qkv_bias": "no_key", "swiglu": 128},
        ROTARY | {"qkv_bias": "none"},
        {"qkv_bias": "no_key"},
    ],
)
def test_timms_names_of_other_vits_are_read_too(tmp_path: Path, more: dict) -> None:
    """Of DINOv3's shapes, and of a ViT whose keys have no bias, which timm's have."""
    run, out = source(tmp_path / "run", vit(64, 4, **more)), tmp_path / "48x3"
    words = ["extract", str(run), "--size", "48x3", "--out", str(out), "--format", "timm"]
    assert main(words) == 0
    small = more | ({"swiglu": 96} if "swiglu" in more else {})
    begun, wanted = networks(vit(48, 3, **small)), networks(vit(48, 3, **small))
    begin(begun, str(out))
    begin(wanted, f"{run}:48x3")
    for a, b in zip(begun.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(a, b)
    (path,) = out.glob("*.safetensors")
    state = load_file(path)
    gone = next(n for n in state if n.endswith(("v_bias", "fc1_x.weight", "attn.proj.bias")))
    save_file({n: t for n, t in state.items() if n != gone}, path)
    with pytest.raises(UserError, match=r"start .*(lacks|missing).*blocks\.0"):
        begin(networks(vit(48, 3, **small)), str(out))


def test_a_size_of_a_run_is_what_its_folder_would_be(tmp_path: Path) -> None:
    run, out, recipe = source(tmp_path / "run", vit(64, 4)), tmp_path / "plain", vit(48, 3)
    assert main(["extract", str(run), "--size", "48x3", "--out", str(out)]) == 0
    one, other = networks(recipe), networks(recipe)
    begin(one, f"{run}:48x3")
    begin(other, str(out))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["tucker", *BACKBONES])
def test_a_whole_run_is_gone_on_from_with_its_mask_token(kind: str, tmp_path: Path) -> None:
    recipe = recipe_with(
        **(tree([6, 24, 24]) if kind == "tucker" else {"backbone": BACKBONES[kind]})
    )
    run = source(tmp_path / "run", recipe)
    whole, _, _ = load_teacher(run)
    ours = networks(recipe)
    begin(ours, str(run))
    for branch in (ours.student, ours.teacher):
        state = branch.backbone.state_dict()
        assert all(torch.equal(state[name], t) for name, t in whole.state_dict().items())


def test_a_network_from_a_template_trains_on_with_matrices_of_its_own(tmp_path: Path) -> None:
    run, out = run_of(tmp_path / "run", recipe_with(**tree([6, 24, 24]))), tmp_path / "96x5"
    assert main(["init", str(run), "--size", "96x5", "--out", str(out)]) == 0
    ours, images = networks(vit(96, 5)), torch.randn(2, 3, 32, 32)
    begin(ours, str(out))
    feature = ours.backbone(images, ours.backbone.space.intact)[:, 0]
    torch.testing.assert_close(feature, reload(out)(images), rtol=0, atol=2e-5)
    begin(networks(vit(64, 4)), f"{run}:64x4")


def test_what_does_not_fit_is_refused_by_what_it_is(tmp_path: Path) -> None:
    run = source(tmp_path / "run", vit(64, 4))
    swin = source(tmp_path / "swin", recipe_with(backbone=BACKBONES["swin"]))
    plain, onnx = tmp_path / "plain", tmp_path / "onnx"
    assert main(["extract", str(run), "--size", "48x3", "--out", str(plain)]) == 0
    onnx.mkdir()
    (onnx / "model.onnx").touch()
    words = ["--size", "48x3", "--format", "hf", "--out", str(tmp_path / "hf")]
    assert main(["extract", str(run), *words]) == 0
    template = recipe_with(**tree([6, 24, 24]))
    for recipe, start, said in (
        (vit(64, 4), plain, "embed_dim 48 instead of 64; depth 3 instead of 4"),
        (vit(48, 3, head_dim=8), plain, "num_heads 3 instead of 6"),
        (vit(48, 3, patch_size=16), plain, "patch_size 8 instead of 16"),
        (vit(48, 3), f"{plain}:48x3", "is one size, leave out :48x3"),
        (vit(48, 3), swin, "it is a Swin, the recipe's backbone a ViT"),
        (recipe_with(backbone=BACKBONES["swin"]), plain, "it is a vit_small.*backbone a Swin"),
        (vit(48, 3), tmp_path / "hf", "a folder of transformers has other names"),
        (vit(32, 2), onnx, "ONNX file has no weights by name"),
        (vit(48, 3), tmp_path / "none", "there is no folder"),
        (vit(48, 3), tmp_path, "holds no teacher"),
        (template, run, "no template: backbone.name=tucker can begin with a run"),
        (recipe_with(**tree([6, 8, 24])), source(tmp_path / "other", template), "another shape"),
    ):
        with pytest.raises(UserError, match=f"^start .*{said}"):
            begin(networks(recipe), str(start))


@pytest.mark.parametrize("there", ["shared", "per_width"])
def test_norms_of_each_width_begin_as_shared_ones_and_those_as_the_widest(
    there: str, tmp_path: Path
) -> None:
    other = {"shared": "per_width", "per_width": "shared"}[there]
    run, begun = (
        source(tmp_path / "run", vit(64, 3, norms=there)),
        networks(vit(64, 3, norms=other)),
    )
    begin(begun, str(run))
    theirs, ours = load_teacher(run)[0], begun.backbone
    images, intact = torch.randn(2, 3, 32, 32), ours.space.intact
    assert torch.equal(ours(images, intact), theirs(images, intact))
    assert torch.equal(ours.embed.mask_token, theirs.embed.mask_token)
    rows = ours.norm.weight if other == "per_width" else theirs.norm.weight
    assert rows.shape == (4, 64)  # of 16, 32, 48 and 64 channels
    assert all(torch.equal(row, rows[0]) for row in rows) == (other == "per_width")
