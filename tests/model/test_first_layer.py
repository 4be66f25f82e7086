"""A network for images of other channels than it was trained on: where both say the same."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import adapt_input_conv

from poa_ds.checkpoint.deployed import load_teacher, publish
from poa_ds.cli import main
from poa_ds.export.adapted import colours
from poa_ds.export.start import begin
from poa_ds.methods.method import method
from poa_ds.model import first_layer
from poa_ds.system.errors import UserError
from tests.distributed.programs.worker import recipe_with
from tests.distributed.test_backbones_ranks import BACKBONES


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 13])
def test_the_rule_is_timms(channels: int) -> None:
    weight = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    found = first_layer.adapted(weight, channels)
    assert found.shape == (8, channels, 4, 4) and found.dtype == weight.dtype
    wanted = adapt_input_conv(channels, weight.float())
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=1e-6)
    assert bool(first_layer.described(3, channels)) == (channels != 3)


def test_images_that_repeat_their_channels_give_the_same() -> None:
    weight, images = torch.randn(8, 3, 4, 4).double(), torch.randn(2, 3, 8, 8).double()
    wanted = F.conv2d(images, weight)
    twice = F.conv2d(torch.cat((images, images), 1), first_layer.adapted(weight, 6))
    torch.testing.assert_close(twice, wanted)
    grey = images[:, :1]
    of_grey = F.conv2d(grey, first_layer.adapted(weight, 1))
    torch.testing.assert_close(of_grey, F.conv2d(grey.repeat(1, 3, 1, 1), weight))
    of_one = first_layer.adapted(weight[:, :1], 5)  # of copies, what the one channel gave
    torch.testing.assert_close(
        F.conv2d(grey.repeat(1, 5, 1, 1), of_one), F.conv2d(grey, weight[:, :1])
    )
    with pytest.raises(UserError, match="takes 5 channels: that of 1 or 3"):
        first_layer.adapted(torch.randn(8, 5, 4, 4), 4)


def pixels(channels: int) -> dict[str, object]:
    values = {"augmentation__mean": [0.5] * channels, "augmentation__std": [0.25] * channels}
    return {
        "data__channels": channels,
        **values,
        **{f"augmentation__{key}": 0.0 for key in colours(channels)},
    }


@pytest.mark.parametrize("kind", ["vit", *BACKBONES])
@pytest.mark.parametrize("whole", [True, False])
def test_a_run_of_six_channels_begins_with_a_network_of_three(
    kind: str, whole: bool, tmp_path: Path
) -> None:
    same = {"backbone": BACKBONES[kind]} if kind != "vit" else {}
    torch.manual_seed(1)
    source = method(recipe_with(**same)).networks()
    for parameter in source.teacher.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    publish(tmp_path / "run", dict(source.teacher.state_dict()), recipe_with(**same), 7)
    begun, place = method(recipe_with(**same, **pixels(6))).networks(), str(tmp_path / "run")
    if not whole:
        place = str(tmp_path / "one")
        size = str(source.backbone.space.intact)
        words = ["extract", str(tmp_path / "run"), "--size", size, "--out", place]
        assert main([*words, "--format", "state-dict"]) == 0
    assert "first layer of 3 channels made one of 6" in begin(begun, place)
    images, intact = torch.randn(2, 3, 32, 32), begun.backbone.space.intact
    with torch.no_grad():
        wanted = source.teacher.backbone(images, intact)
        for branch in (begun.student, begun.teacher):
            found = branch.backbone(torch.cat((images, images), 1), intact)
            assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    alone = method(recipe_with(**same)).networks()
    assert begin(alone, place) == ""


def test_an_imported_network_of_six_channels_is_timms(tmp_path: Path) -> None:
    """timm makes the same of its weights with in_chans, and a grey image is its three copies."""
    options = {"embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0, "img_size": 32}
    torch.manual_seed(0)
    theirs = timm.create_model("vit_small_patch16_224", **options).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    for channels in (6, 1):
        out, values = tmp_path / f"of{channels}", ",".join(["0.5"] * channels)
        words = ["import", str(tmp_path / "w.safetensors"), "--out", str(out), "--depths", "1,2"]
        words += ["--channels", str(channels)]
        assert main(words) == 2  # ImageNet's mean is of colours
        assert main([*words, "--mean", values, "--std", values]) == 0
        model, recipe, _ = load_teacher(out)
        assert recipe.data.channels == channels and len(recipe.augmentation.mean) == channels
        assert not any((recipe.augmentation.hue, recipe.augmentation.gray))
        assert f"made one of {channels}" in (out / "config.json").read_text()
        seen = torch.randn(2, 3, 32, 32)
        copies = torch.cat((seen, seen), 1)
        if channels == 1:
            copies, seen = seen[:, :1], seen[:, :1].repeat(1, 3, 1, 1)
        with torch.no_grad():
            wanted = theirs(seen)
            found = model(copies, model.space.intact)[:, 0]
        assert (found - wanted).abs().max() < 1e-4
