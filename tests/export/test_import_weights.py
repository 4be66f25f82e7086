"""Networks of timm with random weights, imported, re-based, sliced, given back: timm is witness."""

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.export.extract import extract
from poa_ds.export.import_weights import FEATURES, add_arguments, imported, recipe_of
from poa_ds.export.rebase import helmert, rebased, rotation, statistics
from poa_ds.export.start import begin
from poa_ds.export.vit_weights import recognised
from poa_ds.export.weights_source import read_weights
from poa_ds.methods import frozen
from poa_ds.methods.method import method
from poa_ds.model.space import Subnet
from poa_ds.model.vit.network import ElasticViT
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError
from poa_ds.system.typed_yaml import plain
from tests.distributed.programs.worker import recipe_with
from tests.support.shards import make_shards

SMALL = {"embed_dim": 128, "depth": 3, "num_heads": 2, "num_classes": 0}
NAMES = {  # timm's name, pixels of its positions
    "vit_small_patch14_dinov2": 70,
    "vit_small_patch14_reg4_dinov2": 70,
    "vit_giant_patch14_dinov2": 70,
    "vit_giant_patch14_reg4_dinov2": 70,
    "vit_small_patch16_224": 64,
    "deit_small_patch16_224": 64,
    "deit3_small_patch16_224": 64,
}


def theirs(name: str, side: int, **changes: object) -> nn.Module:
    """timm's network with random values everywhere, in float64."""
    torch.manual_seed(0)
    network = timm.create_model(name, img_size=side, **SMALL | changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.double().eval()


def ours(state: dict[str, torch.Tensor], *words: str) -> ElasticViT:
    """Imported, in the type of the tensors."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["x", "--out", "o", "--widths", "64,128", "--depths", "2,3", *words])
    found = recognised(state, head_dim=64, what="x")
    return imported(found, recipe_of(found, args, {}))


def seen(network: nn.Module, images: torch.Tensor, registers: int) -> torch.Tensor:
    tokens = network.forward_features(images)
    return torch.cat((tokens[:, :1], tokens[:, 1 + registers :]), dim=1)


INTACT = Subnet(128, 3)


@pytest.mark.parametrize("name", NAMES)
def test_the_intact_network_is_timms_at_its_size_and_at_another(name: str) -> None:
    side = NAMES[name]
    source = theirs(name, side)
    registers = source.num_prefix_tokens - 1
    for other in (side, side // 5 * 3 if "14" in name else 96):
        network = ours(source.state_dict(), "--image-size", str(other))
        witness = timm.create_model(name, img_size=other, **SMALL).double().eval()
        filtered = timm.models.vision_transformer.checkpoint_filter_fn(source.state_dict(), witness)
        witness.load_state_dict(filtered)
        images = torch.randn(2, 3, other, other).double()
        with torch.no_grad():
            wanted, found = seen(witness, images, registers), network(images, INTACT)
        assert wanted.std() > 0.1 and (found - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("name", [name for name in NAMES if "dinov2" in name])
def test_what_was_imported_is_extracted_with_every_bit(name: str) -> None:
    source = theirs(name, NAMES[name])
    back = extract(ours(source.state_dict()), INTACT, torch.float64)
    assert back.keys() == source.state_dict().keys()
    assert all(torch.equal(back[n], t) for n, t in source.state_dict().items())


@pytest.mark.parametrize("way", ["none", "sort", "rotate"])
@pytest.mark.parametrize("name", ["vit_giant_patch14_reg4_dinov2", "deit3_small_patch16_224"])
def test_a_rebased_network_says_the_same(name: str, way: str) -> None:
    source = theirs(name, NAMES[name])
    network = ours(source.state_dict())
    images = torch.randn(3, 3, NAMES[name], NAMES[name]).double()
    masks = torch.rand(3, (network(images, INTACT).shape[1] - 1)) < 0.3
    wanted = network(images, INTACT, masks)
    found = rebased(network, statistics(network, [images]), way)
    network.load_state_dict(found.state)
    again = network(images, INTACT, masks)
    assert (again @ found.matrix + found.bias - wanted).abs().max() < 1e-12 * wanted.abs().max()
    if way != "none":
        assert (again - wanted).abs().max() > 0.1  # it is another basis
        stream = statistics(network, [images]).stream.diagonal()
        assert way == "rotate" or (stream.diff() <= 1e-9 * stream.max()).all()


def test_heads_and_units_stand_in_the_order_of_what_they_add_to_the_stream() -> None:
    """Each part's own sum of squares, by a slow loop over what the layers read."""
    network = ours(theirs("vit_giant_patch14_dinov2", 70).state_dict())
    images = torch.randn(3, 3, 70, 70).double()
    before = added(network, images)
    assert not all(map(descending, before))  # no network is sorted by chance
    network.load_state_dict(rebased(network, statistics(network, [images]), "sort").state)
    after = added(network, images)
    assert all(map(descending, after))
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one.sort().values, other.sort().values)


def descending(values: torch.Tensor) -> bool:
    return bool((values.diff() <= 1e-12 * values.max()).all())


def added(network: ElasticViT, images: torch.Tensor) -> list[torch.Tensor]:
    """Of each block, what each head adds to the stream, squared and summed; each unit likewise."""
    found: list[torch.Tensor] = []

    def measure(layer: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
        x, size = inputs[0], 64 if layer.in_features == 128 else 1
        parts = [x[:, i : i + 1] * layer.weight[:, i] for i in range(layer.in_features)]
        squares = torch.stack([part.square().sum() for part in parts])
        found.append(squares.unflatten(0, (-1, size)).sum(1))

    layers = [layer for block in network.blocks for layer in (block.attn.proj, block.mlp.fc2)]
    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    network(images, INTACT)
    for hook in hooks:
        hook.remove()
    return found


def test_a_slice_of_the_rotated_stream_is_its_first_principal_components() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 24).double() @ torch.randn(24, 24).double()
    x = x - x.mean(1, keepdim=True)
    turn = rotation(x.T @ x)
    one = torch.ones(24).double()
    assert (turn @ turn.T - torch.eye(24)).abs().max() < 1e-13
    assert (turn @ one - one).abs().max() < 1e-13
    _, _, axes = torch.linalg.svd(x, full_matrices=False)  # another way to the components
    for width in (2, 10, 23):
        leading = F.layer_norm((x @ turn.T)[:, :width], (width,), eps=0.0)
        scores = x @ axes[: width - 1].T
        basis = helmert(width)[:, 1:]
        signs = torch.sign(((x @ turn.T)[:, :width] @ basis * scores).sum(0))
        wanted = F.layer_norm(scores * signs @ basis.T, (width,), eps=0.0)
        assert (leading - wanted).abs().max() < 1e-12


def test_rotation_keeps_more_of_the_features_in_a_slice_than_no_rotation() -> None:
    """A stream whose energy lies in few directions, none of them a channel."""
    torch.manual_seed(0)
    directions = torch.randn(6, 64).double()
    x = torch.randn(500, 6).double() @ directions
    x = x - x.mean(1, keepdim=True)

    def kept(y: torch.Tensor) -> float:
        part = y[:, :8] - y[:, :8].mean(1, keepdim=True)
        return (part.square().sum() / y.square().sum()).item()

    assert kept(x @ rotation(x.T @ x).T) > 0.999 > 0.5 > kept(x)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    make_shards(tmp_path / "shards", 24)
    return tmp_path / "shards"


def test_the_command_writes_a_run_that_is_cut_and_given_back_to_timm(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = theirs("vit_small_patch14_reg4_dinov2", 70).float()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "LICENSE.txt").write_text("Of the weights.\n")
    run, words = tmp_path / "run", ["--widths", "64,128", "--depths", "2,3", "--image-size", "42"]
    words += ["--calibrate", str(images), "--out", str(run)]  # which asks for a rotation
    assert cli.main(["import", str(tmp_path / "weights.safetensors"), *words]) == 0
    assert "poa-ds extract" in capsys.readouterr().out
    model, recipe, _ = load_teacher(run)
    assert [*map(str, model.space.subnets())] == ["64x2", "64x3", "128x2", "128x3"]
    assert recipe.backbone.input_scale == 0.5 and recipe.crops.global_size == 42
    assert (model.norm.weight == 1).all() and (run / FEATURES).is_file()  # it is rotated
    out = tmp_path / "out"
    for size in ("64x2", "128x3"):
        assert cli.main(["extract", str(run), "--size", size, "--out", str(out), "--check"]) == 0
        assert (out / "LICENSE.weights").read_text() == "Of the weights.\n"
        architecture = json.loads((out / "config.json").read_text())["architecture"]
        assert architecture == "vit_small_patch14_reg4_dinov2"
        made = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        pixels = torch.randn(2, 3, 42, 42)
        with torch.no_grad():
            assert (made(pixels) - model(pixels, Subnet.read(size))[:, 0]).abs().max() < 1e-4
    assert cli.main(["sizes", str(run)]) == 0
    trains_from(run, model, recipe)


def trains_from(run: Path, model: ElasticViT, recipe: Recipe) -> None:
    """A recipe of method seed starts with the run, and learns from it."""
    training = recipe_with(
        backbone=plain(recipe.backbone),
        crops=plain(recipe.crops) | {"local_count": 0},
        evaluation={"crop": 42, "resize": 48},
        start=str(run),
        objective={"method": "seed", "ibot": 0, "koleo": 0},
        distill={"teacher": str(run), "queue": 64},
    )
    networks, pixels = method(training).networks(), torch.randn(2, 3, 42, 42)
    begin(networks, str(run))
    student = networks.backbone.eval()
    with torch.no_grad():
        for subnet in model.space.subnets():
            assert torch.equal(student(pixels, subnet), model(pixels, subnet))
        teacher = frozen.find(str(run), 42).network()
        assert (teacher(pixels) - model(pixels, INTACT)[:, 0]).abs().max() < 1e-5


def test_a_checkpoint_of_dinov2s_own_names_is_read(tmp_path: Path) -> None:
    source = theirs("vit_giant_patch14_dinov2", 70).state_dict()
    named = {
        n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for n, t in source.items()
    }
    named |= {"mask_token": torch.ones(1, 128).double()}
    torch.save({"teacher": {f"backbone.{n}": t for n, t in named.items()}}, tmp_path / "own.pth")
    network = ours(read_weights(tmp_path / "own.pth"))
    assert torch.equal(network.embed.mask_token, named["mask_token"])
    back = extract(network, INTACT, torch.float64)
    assert all(torch.equal(back[n], t) for n, t in source.items())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_small_patch16_rope_224", "rotary ones that are not DINOv3's"),
        ("eva02_tiny_patch14_224", "an EVA"),
        ("eva_giant_patch14_224", "an EVA"),
        ("eva02_base_patch14_224", "EVA-02"),
        ("vit_base_patch16_clip_224", "CLIP"),
        ("vit_base_patch16_siglip_224", "SigLIP"),
        ("deit_small_distilled_patch16_224", "distilled"),
        ("swin_tiny_patch4_window7_224", "Swin"),
        ("resnet18", "patch_embed"),
    ],
)
def test_what_is_not_supported_is_named(name: str, told: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    with pytest.raises(UserError, match=f"{told}.*supported are .*DINOv2"):
        recognised(state, head_dim=64, what="x")


@pytest.mark.parametrize(
    "name", ["vit_huge_patch14_224", "deit3_huge_patch14_224", "vit_giant_patch14_dinov2"]
)
def test_heads_have_the_channels_of_their_family(name: str) -> None:
    """Which no tensor tells: 80 of 1280 in ViT-H, 64 elsewhere."""
    with torch.device("meta"):
        network = timm.create_model(name, depth=1, num_classes=0)
    found = recognised(network.state_dict(), head_dim=None, what="x")
    assert found.head_dim == network.blocks[0].attn.head_dim


def test_missing_left_over_and_misshapen_tensors_are_named() -> None:
    state = theirs("vit_small_patch14_dinov2", 70).state_dict()
    for change, told in (
        ({"blocks.1.norm1.bias": None}, "missing: blocks.1.norm1.bias"),
        ({"extra.weight": torch.ones(3)}, "unexpected: extra.weight"),
        ({"norm.weight": torch.ones(3)}, r"another shape: norm.weight \[3\] instead of \[128\]"),
        ({"pos_embed": torch.ones(1, 22, 128)}, "22 positions are no square"),
    ):
        wrong = {n: t for n, t in (state | change).items() if t is not None}
        with pytest.raises(UserError, match=told):
            recognised(wrong, head_dim=64, what="x")
    with pytest.raises(UserError, match="--head-dim"):
        recognised(state, head_dim=48, what="x")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--widths", "64"], "--widths must end with 128"),
        (["--depths", "1,2,4"], "--depths must end with 3"),
        (["--rebase", "sort"], "need --calibrate"),
        (["--head-dim", "48"], "does not divide into heads of 48"),
        (["--image-size", "50"], "crops.global_size 50 is not a multiple"),
    ],
)
def test_wrong_use_is_told(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(theirs("vit_small_patch14_dinov2", 70).state_dict(), tmp_path / "w.safetensors")
    out = tmp_path / "out"
    assert cli.main(["import", str(tmp_path / "w.safetensors"), "--out", str(out), *words]) != 0
    assert told in capsys.readouterr().err
    assert not out.exists()
    assert cli.main(["import", str(tmp_path / "none.pth"), "--out", str(out)]) != 0
    assert "Nothing is downloaded" in capsys.readouterr().err
