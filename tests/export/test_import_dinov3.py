"""DINOv3 and its family with random weights, imported, re-based, sliced, given back to timm."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.export.extract import extract
from poa_ds.export.rebase import rebased, statistics
from poa_ds.export.vit_weights import recognised
from poa_ds.model.space import Subnet
from poa_ds.model.vit.names import FORM
from poa_ds.model.vit.network import ElasticViT
from poa_ds.system.errors import UserError
from tests.export.test_import_weights import INTACT, ours, seen, theirs
from tests.support.shards import make_shards

FAMILY = (
    "vit_small_patch16_dinov3",
    "vit_small_patch16_dinov3_qkvb",
    "vit_small_plus_patch16_dinov3",
    "vit_small_plus_patch16_dinov3_qkvb",
    "vit_base_patch16_dinov3",
    "vit_large_patch16_dinov3_qkvb",
    "vit_huge_plus_patch16_dinov3",
    "vit_7b_patch16_dinov3",
    "vit_tiny_patch16_dinov3_qkvb",  # EUPE
)
SIDE = 64


@pytest.mark.parametrize("name", [FAMILY[i] for i in (0, 3, 7, 8)])
def test_the_intact_network_is_timms_at_two_resolutions_and_comes_back(name: str) -> None:
    source = theirs(name, SIDE, global_pool="token")
    network = ours(source.state_dict(), "--image-size", str(SIDE))
    for side in (SIDE, 96):
        images = torch.randn(2, 3, side, side).double()
        with torch.no_grad():
            wanted, found = seen(source, images, 4), network(images, INTACT)
        assert wanted.std() > 0.1 and (found - wanted).abs().max() < 1e-12
    _, arguments, back = FORM.timm(network.shape, INTACT, extract(network, INTACT, torch.float64))
    state = source.state_dict()
    assert arguments["num_heads"] == 2 and back.keys() == state.keys()
    assert all(torch.equal(back[n], t) for n, t in state.items())


@pytest.mark.parametrize("name", FAMILY)
def test_every_network_of_the_family_is_recognised_by_its_shapes(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, depth=1)
    found = recognised(network.state_dict(), head_dim=None, what="x")
    attention, mlp = network.blocks[0].attn, network.blocks[0].mlp
    assert (found.width, found.head_dim) == (network.embed_dim, attention.head_dim)
    assert (found.positions, found.registers, found.image_size) == ("rope", 4, 256)
    assert found.swiglu == (mlp.fc2.in_features if hasattr(mlp, "fc1_g") else 0)
    assert found.qkv_bias == ("none" if attention.q_bias is None else "no_key")
    size = Subnet(found.width, found.depth)
    again, _, _ = FORM.timm(found.network().shape, size, {})
    assert again == name


def metas(source: nn.Module) -> dict[str, Tensor]:
    """A state as the authors' repository names it, with what a file of theirs has besides."""
    named: dict[str, Tensor] = {}
    for name, tensor in source.state_dict().items():
        at = name.rpartition(".")[0]
        if name.endswith("q_bias"):
            values = source.state_dict()[f"{at}.v_bias"]
            junk, mask = torch.ones_like(tensor), torch.ones(3, len(tensor)).double()
            mask[1] = 0
            named[f"{at}.qkv.bias"] = torch.cat((tensor, junk, values))
            named[f"{at}.qkv.bias_mask"] = mask.flatten()
        elif not name.endswith("v_bias"):
            for one, other in (
                *(("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"), ("mlp.fc2", "mlp.w3")),
                *(
                    ("mlp.fc1_g", "mlp.w1"),
                    ("mlp.fc1_x", "mlp.w2"),
                    ("reg_token", "storage_tokens"),
                ),
            ):
                name = name.replace(one, other)
            named[name] = tensor
    width = source.embed_dim
    named |= {"rope_embed.periods": torch.ones(16), "mask_token": torch.ones(1, width).double()}
    return named | {"local_cls_norm.weight": torch.ones(width), "projectors.a.bias": torch.ones(2)}


def test_the_authors_own_names_are_read_and_keys_have_no_bias() -> None:
    source = theirs("vit_small_plus_patch16_dinov3_qkvb", SIDE)
    named, images = metas(source), torch.randn(2, 3, SIDE, SIDE).double()
    network = ours(named, "--image-size", str(SIDE))
    with torch.no_grad():
        assert (network(images, INTACT) - seen(source, images, 4)).abs().max() < 1e-12
    assert torch.equal(network.embed.mask_token, named["mask_token"])
    assert network.shape.qkv_bias == "no_key"


@pytest.mark.parametrize("way", ["sort", "rotate"])
@pytest.mark.parametrize("name", [FAMILY[0], FAMILY[3]])
def test_a_rebased_network_says_the_same_and_its_sizes_are_timms(name: str, way: str) -> None:
    source = theirs(name, SIDE)
    network = ours(source.state_dict(), "--image-size", str(SIDE))
    images = torch.randn(3, 3, SIDE, SIDE).double()
    masks = torch.rand(3, 16) < 0.3
    wanted = network(images, INTACT, masks)
    found = rebased(network, statistics(network, [images]), way)
    network = with_state(network, found.state, way)
    again = network(images, INTACT, masks)
    assert (again @ found.matrix + found.bias - wanted).abs().max() < 1e-12 * wanted.abs().max()
    assert (again - wanted).abs().max() > 0.1
    for subnet in (INTACT, Subnet(64, 2)):
        alone = timms(network, subnet)
        with torch.no_grad():
            assert (alone(images) - network(images, subnet)[:, 0]).abs().max() < 1e-12


def with_state(network: ElasticViT, state: dict[str, Tensor], way: str) -> ElasticViT:
    """The network in another basis; a rotation folds norms into a bias of keys too."""
    options = vars(network.shape) | ({"qkv_bias": "full"} if way == "rotate" else {})
    del options["widest"], options["deepest"]
    made = ElasticViT(network.space, **options).double().eval()
    made.load_state_dict(state)
    return made


def timms(network: ElasticViT, subnet: Subnet) -> nn.Module:
    """One size as timm's network."""
    state = extract(network, subnet, torch.float64)
    name, arguments, tensors = FORM.timm(network.shape, subnet, state)
    made = timm.create_model(name, **arguments).double().eval()
    made.load_state_dict(tensors)
    return made


def test_no_channel_may_move_within_a_head() -> None:
    """Which rebase never does; without rotary positions it would change nothing."""
    network = ours(theirs(FAMILY[0], SIDE).state_dict(), "--image-size", str(SIDE))
    images, weight = torch.randn(2, 3, SIDE, SIDE).double(), network.blocks[0].attn.qkv.weight
    with torch.no_grad():
        wanted = network(images, INTACT)
        parts = weight.view(2, 3, 64, 128)
        parts[:, :2] = parts[:, :2].flip(2).clone()
        assert (network(images, INTACT) - wanted).abs().max() > 1e-3


def test_the_command_gives_slices_back_under_the_familys_name(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", 24)
    source = theirs("vit_base_patch16_dinov3", SIDE).float()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    run, out = tmp_path / "run", tmp_path / "out"
    words = ["--widths", "64,128", "--depths", "2,3", "--image-size", str(SIDE), "--out", str(run)]
    words += ["--rebase", "rotate", "--calibrate", str(tmp_path / "shards")]
    assert cli.main(["import", str(tmp_path / "weights.safetensors"), *words]) == 0
    model, recipe, _ = load_teacher(run)
    options = recipe.backbone
    assert (options.positions, options.qkv_bias, options.norm_eps) == ("rope", "full", 1e-5)
    for size in ("64x2", "128x3"):
        assert cli.main(["extract", str(run), "--size", size, "--out", str(out), "--check"]) == 0
        made = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        for side in (SIDE, 96):
            pixels = torch.randn(2, 3, side, side)
            with torch.no_grad():
                wanted = model(pixels, Subnet.read(size))[:, 0]
                assert (made(pixels) - wanted).abs().max() < 1e-4


def test_what_is_wrong_is_named() -> None:
    state = theirs("vit_small_plus_patch16_dinov3_qkvb", SIDE).state_dict()
    for change, told in (
        ({"blocks.1.attn.v_bias": None}, "missing: 'blocks.1.attn.v_bias'"),
        ({"blocks.1.mlp.fc1_x.weight": None}, "missing: 'blocks.1.mlp.fc1_x.weight'"),
        ({"blocks.2.gamma_1": torch.ones(3)}, r"another shape: blocks.2.ls1.gamma \[3\]"),
        ({"blocks.2.attn.qkv.weight": torch.ones(7, 128)}, r"qkv.weight \[7, 128\], rows 384"),
        ({"reg_token": None}, "rotary ones that are not DINOv3's"),
        ({"pos_embed": torch.ones(1, 17, 128)}, "seems to be an EVA"),
        ({"embeddings.patch_embeddings.weight": torch.ones(1)}, "transformers' layout"),
    ):
        wrong = {n: t for n, t in (state | change).items() if t is not None}
        with pytest.raises(UserError, match=f"x.*{told}.*supported are .*DINOv3"):
            recognised(wrong, head_dim=64, what="x")
    wrong = metas(theirs("vit_small_patch16_dinov3_qkvb", SIDE))
    wrong["blocks.0.attn.qkv.bias_mask"] = torch.ones(3 * 128)
    with pytest.raises(UserError, match="keeps a bias of keys"):
        recognised(wrong, head_dim=64, what="x")
