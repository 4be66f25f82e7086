"""Frozen teachers from files: what they embed, of a run, of one of its sizes, or extracted."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from poa_ds.checkpoint import deployed
from poa_ds.cli import main
from poa_ds.methods import frozen, frozen_patches
from poa_ds.methods.method import method
from poa_ds.recipe import load
from poa_ds.system.errors import UserError
from tests.distributed.programs.worker import recipe_with
from tests.distributed.test_backbones_ranks import BACKBONES
from tests.methods.test_seed import changes, embedded, teacher
from tests.support.teachers import RECIPE, make_teacher

__all__ = ["teacher"]  # the fixture


def test_a_teacher_of_a_run_or_of_a_size_or_extracted_embeds_alike(
    teacher: Path, tmp_path: Path
) -> None:
    images, mean, std = torch.randn(3, 3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    out = tmp_path / "plain"
    words = ["extract", str(teacher), "--size", "32x2", "--format", "state-dict"]
    assert main([*words, "--out", str(out)]) == 0
    for text, size in ((teacher, "48x3"), (f"{teacher}:32x2", "32x2"), (out, "32x2")):
        found = frozen.find(str(text), 32)
        own = {"dtype": torch.float32, "device": torch.device("cpu")}
        wanted = embedded(teacher, images, size)
        assert found.width == wanted.shape[1]
        got = frozen.Embedder(found, mean, std, **own)(images)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        # the same pixels, normalised by a recipe with other numbers
        pixels = images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        other = frozen.Embedder(found, (0.5,) * 3, (0.25,) * 3, **own)((pixels - 0.5) / 0.25)
        torch.testing.assert_close(other, wanted, rtol=0, atol=1e-5)


def test_a_gated_size_that_was_written_for_timm_embeds(tmp_path: Path) -> None:
    """Of which only the architecture's name says that it is gated."""
    backbone = RECIPE.get("backbone", {}) | {"swiglu": 96}
    recipe = load.from_dict(RECIPE | {"backbone": backbone})
    model = method(recipe).networks().backbone
    tensors = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    deployed.write_teacher(tmp_path / "run", tensors, recipe, 3)
    out = tmp_path / "timm"
    assert main(["extract", str(tmp_path / "run"), "--size", "32x2", "--out", str(out)]) == 0
    found, images = frozen.find(str(out), 32), torch.randn(2, 3, 32, 32)
    assert found.cost(32).parameters == sum(p.numel() for p in found.network().parameters())
    wanted = model.eval()(images, model.space.parse("32x2"))[:, 0]
    torch.testing.assert_close(found.network()(images), wanted, rtol=0, atol=1e-5)


def test_head_0_of_a_run_may_embed(teacher: Path, tmp_path: Path) -> None:
    options = load.from_dict(RECIPE | {"heads": {"prototypes": [8, 9], "hidden": 24}})
    own = method(options).networks().teacher
    run, images = tmp_path / "run", torch.randn(3, 3, 32, 32)
    tensors = {name: t + 0.01 * torch.randn_like(t) for name, t in own.state_dict().items()}
    deployed.publish(run, tensors, options, 3)
    own.load_state_dict(tensors)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for size in ("48x3", "32x2"):
        found = frozen.find(f"{run}:{size}", 32, embedding="head0")
        feature = own.backbone(images, own.backbone.space.parse(size))[:, 0]
        [(wanted, _), _] = own.heads(feature)
        cpu = {"dtype": torch.float32, "device": torch.device("cpu")}
        got = frozen.Embedder(found, mean, std, **cpu)(images)
        assert found.width == got.shape[1] == 256
        torch.testing.assert_close(got, wanted.detach(), rtol=0, atol=1e-5)
        plain = frozen.find(f"{run}:{size}", 32)
        assert not torch.equal(found.digest(), plain.digest())
        mlp = int(size[:2]) * 24 + 24 * 24 + 24 * 256
        assert found.cost(32).flops - plain.cost(32).flops == 2 * mlp
    tree = changes(teacher)
    tree["distill"]["embedding"] = "head0"
    with pytest.raises(UserError, match=r"distill.embedding head0: .* has no prototype heads"):
        method(recipe_with(**tree)).networks()


def test_patches_of_every_kind_of_teacher_are_its_tokens(teacher: Path, tmp_path: Path) -> None:
    import timm

    out, file = tmp_path / "plain", tmp_path / "timm.safetensors"
    words = ["extract", str(teacher), "--size", "32x2", "--format", "state-dict"]
    assert main([*words, "--out", str(out)]) == 0
    vit = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    save_file(vit.state_dict(), file)
    images, own = torch.randn(3, 3, 32, 32), {"dtype": torch.float32, "device": torch.device("cpu")}
    model, _, _ = deployed.load_teacher(teacher)
    of_run = model(images, model.space.parse("32x2"))
    of_timm = vit.forward_features(images).detach()[:, vit.num_prefix_tokens :]
    for text, wanted in (
        (f"{teacher}:32x2", of_run[:, 1:]),
        (out, of_run[:, 1:]),
        (f"timm:test_vit={file}", of_timm),
    ):
        found = frozen.find(str(text), 32)
        assert found.patches(32) == wanted.shape[1]
        embedder = frozen.Embedder(found, found.mean, found.std, **own)
        rows, patches = embedder.both(images)
        assert torch.equal(rows, embedder(images))
        torch.testing.assert_close(patches, wanted, rtol=0, atol=1e-5)
    tree = changes(f"timm:test_vit={file}")
    tree["distill"]["patches"] = 1.0  # patches of 16 pixels
    with pytest.raises(UserError, match=r"distill.patches 1: .* of 4 places .* students of 16;"):
        method(recipe_with(**tree)).networks()


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_an_extracted_map_has_the_patches_of_its_run(kind: str, tmp_path: Path) -> None:
    run, out = make_teacher(tmp_path / "run", backbone=BACKBONES[kind]), tmp_path / "plain"
    model, _, _ = deployed.load_teacher(run)
    size, images = str(model.space.smallest), torch.randn(2, 3, 64, 64)
    words = ["extract", str(run), "--size", size, "--format", "state-dict", "--out", str(out)]
    assert main(words) == 0
    wanted = model(images, model.space.smallest)
    rows, patches = frozen_patches.both(frozen.find(str(out), 64).network(), images)
    # a run's tokens are those of the last map, each for 2 x 2 patches that can be masked
    of_map = wanted[:, 1:].unflatten(1, (model.shape.grid(64),) * 2)[:, ::2, ::2]
    torch.testing.assert_close(patches, of_map.flatten(1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows, wanted[:, 0], rtol=0, atol=1e-5)
