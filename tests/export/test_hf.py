"""Sizes as transformers loads them: every variant against the elastic network."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.export.folder import check, reload
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UsageError, UserError
from tests.export.test_folder import made

VARIANTS = {
    "dinov2": ("vit", "32x2", {}),
    "dinov2 of unbiased, gated": ("vit", "32x3", {"qkv_bias": "none", "swiglu": 96}),
    "dinov2_with_registers": ("vit", "48x3", {"registers": 2, "norm_eps": 1e-2}),
    "dinov2_with_registers of keys without bias": (
        "vit",
        "32x2",
        {"registers": 2, "qkv_bias": "no_key", "swiglu": 192},
    ),
    "dinov2 without positions": ("vit", "32x2", {"positions": "none"}),
    "dinov3_vit": ("vit", "32x2", {"positions": "rope", "qkv_bias": "no_key", "norm_eps": 1e-5}),
    "dinov3_vit, gated": (
        "vit",
        "48x2",
        {"positions": "rope", "registers": 3, "qkv_bias": "full", "swiglu": 72},
    ),
    "dinov3_vit without biases": ("vit", "32x2", {"positions": "rope", "qkv_bias": "none"}),
    "swin": ("swin", "32x4", {"stages": [[1, 1], [2, 2], [2, 4], [1, 1]]}),
    "swin, padded": ("swin", "32x2", {"window": 3}),
    "tucker": ("vit", "32x2", {"name": "tucker"}),
}


FAST = ("dinov2 of unbiased, gated", "dinov3_vit, gated", "swin, padded")


@pytest.mark.parametrize(
    "variant", [v if v in FAST else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]
)
def test_automodel_equals_the_elastic_network(
    variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, size, changes = VARIANTS[variant]
    made(kind, tmp_path / "run", **changes)
    model, _, _ = load_teacher(tmp_path / "run")
    out = tmp_path / "out"
    words = ["extract", str(tmp_path / "run"), "--size", size, "--format", "hf", "--out", str(out)]
    assert cli.main([*words, "--check"]) == 0, capsys.readouterr().err
    assert f'transformers.AutoModel.from_pretrained("{out}")' in capsys.readouterr().out
    images, subnet = torch.randn(2, 3, 64, 64), Subnet.read(size)
    assert check(out, model, subnet, images) < 1e-5 * model(images, subnet).abs().max()
    if variant.split()[0] in ("dinov2", "dinov2_with_registers", "dinov3_vit", "swin"):
        assert json.loads((out / "config.json").read_text())["model_type"] == variant.split()[0]


def written(tmp_path: Path, kind: str, size: str, *more: str, **changes: object) -> Path:
    made(kind, tmp_path / "run", **changes)
    out = tmp_path / "out"
    words = ["extract", str(tmp_path / "run"), "--size", size, "--format", "hf", "--out", str(out)]
    assert cli.main([*words, *more]) == 0
    return out


def test_its_backbones_and_processor_take_the_folder(tmp_path: Path) -> None:
    """AutoBackbone itself asks the hub for a folder's name, so its class is taken here."""
    out = written(tmp_path, "vit", "32x2", "--fold-layerscale", registers=2)
    config = AutoConfig.from_pretrained(out, out_features=["stage1", "stage2"])
    backbone = type(AutoBackbone.from_config(config)).from_pretrained(out, config=config)
    images, network = torch.randn(1, 3, 64, 64), reload(out)
    with torch.no_grad():
        last = backbone(images).feature_maps[-1].flatten(2).transpose(1, 2)
    assert (last - network.forward_features(images)[:, 3:]).abs().max() < 1e-5
    processor = AutoImageProcessor.from_pretrained(out)
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    found = processor(pixels, return_tensors="pt").pixel_values[0]
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std)
    )
    assert found.shape == (3, 64, 64)  # resized to 64, cut to 64: as it was, but normalised
    assert (found - (pixels / 255 - mean) / std).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "size", "changes", "why"),
    [
        ("resnet", "64x1-1-1-1", {}, "its ResNets have batch norms"),
        ("swin", "16x2", {}, "normalised over 32 channels, not 16"),
        ("swin", "32x3", {"window": 3}, "in turns"),
        ("swin", "32x4", {}, "does not shift windows of 4 rows on a map of 4"),
        ("vit", "48x2", {"swiglu": 88}, "gives gated MLPs of 88 units at width 48"),
    ],
)
def test_sizes_that_transformers_computes_otherwise_are_refused(
    kind: str,
    size: str,
    changes: dict[str, object],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made(kind, tmp_path / "run", **changes)
    words = ["--size", size, "--format", "hf", "--out", str(tmp_path / "out")]
    assert cli.main(["extract", str(tmp_path / "run"), *words]) == UsageError.exit_status
    said = capsys.readouterr().err
    assert f"transformers cannot express {size} exactly" in said and why in said
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_is_missing_is_told_and_one_that_is_wrong_seen(tmp_path: Path) -> None:
    out = written(tmp_path, "vit", "32x2")
    model, _, _ = load_teacher(tmp_path / "run")
    state, images = load_file(out / "model.safetensors"), torch.randn(2, 3, 64, 64)
    name = "encoder.layer.1.attention.attention.key.weight"
    save_file(state | {name: -state[name]}, out / "model.safetensors")
    assert check(out, model, Subnet(32, 2), images) > 1e-3
    save_file({n: t for n, t in state.items() if n != name}, out / "model.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        reload(out)
