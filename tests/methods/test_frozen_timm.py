"""A teacher of timm's: its features, its cost, and what is wrong with a name or file."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from poa_ds.methods import frozen
from poa_ds.methods.seed import Seed
from poa_ds.system.errors import UserError
from tests.distributed.programs.worker import recipe_with
from tests.methods.test_seed import batches, changes, values

CLASSIFIER = ("head.", "fc.")
ANY_SIDE = {"test_vit": {"dynamic_img_size": True}, "test_resnet": {}}
SIDE = {"test_vit": 32, "test_resnet": 32}  # any, but not the resolution of their training


def saved(name: str, folder: Path, seed: int = 0) -> Path:
    """Random weights with a classifier, as timm's own files have one."""
    torch.manual_seed(seed)
    file = folder / f"{name}{seed}.safetensors"
    save_file(timm.create_model(name, num_classes=7).state_dict(), file)
    return file


@pytest.mark.parametrize("name", SIDE)
def test_it_embeds_as_timm_does_and_costs_what_it_does(name: str, tmp_path: Path) -> None:
    file, side = saved(name, tmp_path), SIDE[name]
    found = frozen.find(f"timm:{name}={file}", side)
    whole = timm.create_model(name, num_classes=7, **ANY_SIDE[name]).eval()
    whole.load_state_dict(load_file(file))
    pixels = torch.rand(3, 3, side, side)
    normalised = (pixels - 0.5) / 0.5  # as this model was trained
    wanted = whole.forward_head(whole.forward_features(normalised), pre_logits=True).detach()
    assert found.width == wanted.shape[1] == whole.num_features
    own = {"dtype": torch.float32, "device": torch.device("cpu")}
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    shift, scale = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
    got = frozen.Embedder(found, mean, std, **own)((pixels - shift) / scale)
    torch.testing.assert_close(got, F.normalize(wanted, dim=-1), rtol=0, atol=1e-5)
    without = sum(p.numel() for n, p in whole.named_parameters() if not n.startswith(CLASSIFIER))
    assert found.cost(side).parameters == without and found.cost(side).flops > 1e6


def test_the_width_is_that_of_what_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a layer stands between the features and the classifier. `~` is the home."""
    name, file = "mobilenetv3_small_050", tmp_path / "weights.safetensors"
    file.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    found = frozen.find(f"timm:{name}=~/weights.safetensors", 32)
    assert found.width == 1024 != timm.create_model(name).num_features


def test_another_file_than_at_the_beginning_is_refused(tmp_path: Path) -> None:
    one, other = (saved("test_vit", tmp_path, seed) for seed in (0, 1))
    recipe = recipe_with(**changes(f"timm:test_vit={one}"))
    _, state = Seed(recipe).targets(None, batches(recipe, 0), values(recipe, 0), {})
    state = {name: tensor.clone() for name, tensor in state.items()}
    Seed(recipe).targets(None, batches(recipe, 1), values(recipe, 1), state)
    changed = recipe_with(**changes(f"timm:test_vit={other}"))
    with pytest.raises(UserError, match="not the file that this run was begun with"):
        Seed(changed).targets(None, batches(changed, 1), values(changed, 1), state)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("timm:test_vit", r"write timm:NAME=FILE.safetensors, .*nothing is downloaded"),
        ("timm:test_vit={}/x.pth", "may run code when they are read, save its state dict with"),
        ("timm:test_vit={}/none.safetensors", "there is no file"),
        ("timm:test_vitt={}/test_vit0.safetensors", "no such model; did you mean test_vit"),
        ("timm:test_vit={}/short.safetensors", "does not fit .*: missing: cls_token"),
        ("timm:test_vit={}/more.safetensors", "does not fit .*: unexpected: extra"),
        ("timm:test_vit={}/torn.safetensors", "missing or damaged"),
        (
            "timm:mixer_s16_224={}/test_vit0.safetensors",
            r"crops.global_size 32: distill.teacher timm:mixer_s16_224=.* does not take .* \(224\)",
        ),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str, tmp_path: Path) -> None:
    state = load_file(saved("test_vit", tmp_path))
    short = {name: tensor for name, tensor in state.items() if name != "cls_token"}
    save_file(short, tmp_path / "short.safetensors")
    save_file(state | {"extra": torch.zeros(2)}, tmp_path / "more.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=said):
        frozen.find(text.format(tmp_path), 32).network()
