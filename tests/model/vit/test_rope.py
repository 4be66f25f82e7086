"""Rotary positions and missing biases against timm's DINOv3 networks, with random values."""

import pytest
import timm
import torch
from torch import Tensor, nn

from poa_ds.export import onnx_file
from poa_ds.export.extract import extract
from poa_ds.model.packing import Packing
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.vit import eva, rope
from poa_ds.model.vit.names import FORM
from poa_ds.model.vit.network import ElasticViT

DIM, DEPTH, SIDE = 64, 2, 64
SPACE = ElasticSpace((32, 64), (1, 2))
INTACT = Subnet(DIM, DEPTH)
OPTIONS = {"positions": "rope", "norm_eps": 1e-5, "registers": 4}
# timm's name and arguments, ours
KINDS = {
    "vit_small_patch16_dinov3": ({}, {"qkv_bias": "none"}),
    "vit_small_patch16_dinov3_qkvb": ({}, {"qkv_bias": "no_key"}),
    "vit_small_plus_patch16_dinov3_qkvb": ({}, {"qkv_bias": "no_key", "swiglu": 4 * DIM}),
    "vit_base_patch16_dinov3": (
        {"attn_type": "rope", "qkv_bias": True, "num_reg_tokens": 0},
        {"qkv_bias": "full", "registers": 0},
    ),
}


def theirs(kind: str) -> nn.Module:
    """timm's network with random values everywhere, in float64."""
    torch.manual_seed(1)
    sizes = {"embed_dim": DIM, "depth": DEPTH, "num_heads": 4, "img_size": SIDE}
    network = timm.create_model(kind, global_pool="token", **sizes | KINDS[kind][0])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.double().eval()


def ours(kind: str, **changes: object) -> ElasticViT:
    """An elastic network with random values everywhere, in float64."""
    torch.manual_seed(2)
    options = {"image_size": SIDE, "head_dim": 16, "layer_scale": 0.5}
    network = ElasticViT(SPACE, **options | OPTIONS | KINDS[kind][1] | changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.double().eval()


def loaded(kind: str, state: dict[str, Tensor]) -> ElasticViT:
    network = ours(kind)
    found = FORM.from_plain(eva.from_timm(state), network.shape)
    missing, unexpected = network.load_state_dict(found, strict=False)
    assert (missing, unexpected) == (["embed.mask_token"], [])
    return network


def masked(witness: nn.Module, images: Tensor, masks: Tensor, token: Tensor) -> Tensor:
    """What timm's network says where some patches are the mask token."""
    hook = witness.patch_embed.register_forward_hook(
        lambda _, __, x: torch.where(masks.view(*x.shape[:3], 1), token, x)
    )
    try:
        return witness.forward_features(images)
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_the_intact_network_is_timms_at_every_resolution_masks_and_gradients_included(kind) -> None:
    witness = theirs(kind)
    network, some = loaded(kind, witness.state_dict()), "blocks.1.attn.qkv.weight"
    for sides in ((SIDE, SIDE), (96, 96), (48, 80)):
        images = torch.randn(2, 3, *sides).double()
        masks = torch.rand(2, sides[0] * sides[1] // 256) < 0.3
        wanted = FORM.tokens(
            masked(witness, images, masks, network.embed.mask_token), network.shape
        )
        found = network(images, INTACT, masks)
        assert wanted.std() > 0.1 and (found - wanted).abs().max() < 1e-12
        weights = torch.randn_like(wanted)
        (mine,) = torch.autograd.grad((found * weights).sum(), network.get_parameter(some))
        (other,) = torch.autograd.grad((wanted * weights).sum(), witness.get_parameter(some))
        other = FORM.from_plain({some: other}, network.shape)[some]
        assert (mine - other).abs().max() < 1e-10 * other.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_alone_is_the_slice_as_plain_module_and_as_timms(kind: str) -> None:
    network = ours(kind)
    for subnet in (SPACE.smallest, INTACT):
        state = extract(network, subnet, torch.float64)
        assert sum(t.numel() for t in state.values()) == network.parameter_count(subnet)
        name, arguments, tensors = FORM.timm(network.shape, subnet, state)
        made = timm.create_model(name, **arguments).double().eval()
        made.load_state_dict(tensors)
        for side in (SIDE, 96):
            images = torch.randn(2, 3, side, side).double()
            with torch.no_grad():
                wanted = network(images, subnet)
                for alone in (state.network(), made):
                    tokens = FORM.tokens(alone.forward_features(images), network.shape)
                    assert (tokens - wanted).abs().max() < 1e-12, subnet
                    assert torch.equal(alone(images), tokens[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_timm_come_back_with_every_bit(kind: str) -> None:
    state = theirs(kind).state_dict()
    network = loaded(kind, state)
    plain = extract(network, INTACT, torch.float64)
    _, _, back = FORM.timm(network.shape, INTACT, plain)
    assert back.keys() == state.keys() and all(torch.equal(back[n], state[n]) for n in state)


def test_a_slice_is_one_line_of_the_family_of_the_whole() -> None:
    network = ElasticViT(ElasticSpace((192, 384), (1,)), image_size=64, qkv_bias="none", **OPTIONS)
    images = torch.randn(1, 3, 64, 64)
    for subnet in network.space.subnets():
        name, _, tensors = FORM.timm(network.shape, subnet, extract(network, subnet))
        assert name == "vit_small_patch16_dinov3"
        sizes = {"embed_dim": subnet.width, "depth": 1, "num_heads": subnet.width // 64}
        line = timm.create_model(name, global_pool="token", **sizes).eval()
        line.load_state_dict(tensors)
        with torch.no_grad():
            assert (line(images) - network(images, subnet)[:, 0]).abs().max() < 1e-5


def test_streams_with_dropped_sequences_and_checkpoints_are_the_sizes_alone() -> None:
    """Two resolutions, gradients of every parameter; what is recomputed turns alike."""
    gradients = []
    for checkpointing in (False, True):
        network = ours("vit_small_patch16_dinov3_qkvb", activation_checkpointing=checkpointing)
        torch.manual_seed(3)
        crops = [torch.randn(n, 3, s, s).double() for n, s in ((3, SIDE), (4, 32))]
        subnets, none = (INTACT, SPACE.smallest), [None, None]
        both = network.streams(crops, subnets, none)
        for tokens, subnet in zip(both, subnets, strict=True):
            for part, images in zip(tokens, crops, strict=True):
                assert (part - network(images, subnet)).abs().max() < 1e-12
        generator = torch.Generator().manual_seed(4)
        drops = network.draw_drop_path(network.packing(crops), subnets, 0.4, generator, "cpu")
        dropped = network.streams(crops, subnets, none, drops)
        sum(x.square().sum() for tokens in dropped for x in tokens).backward()
        assert network.packing(crops) == Packing(((3, 21), (4, 9)))
        gradients.append([p.grad for n, p in network.named_parameters() if "mask" not in n])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_no_positions_leave_an_image_a_bag_of_patches() -> None:
    network = ours("vit_small_patch16_dinov3", positions="none", norm_eps=1e-6)
    images = torch.randn(2, 3, SIDE, SIDE).double()
    swapped = torch.cat((images[..., 32:], images[..., :32]), dim=-1)
    with torch.no_grad():
        assert (network(images, INTACT) - network(swapped, INTACT))[:, 0].abs().max() < 1e-12
        turning = ours("vit_small_patch16_dinov3")
        assert (turning(images, INTACT) - turning(swapped, INTACT))[:, 0].abs().max() > 1e-3
    for subnet in SPACE.subnets():
        state = extract(network, subnet, torch.float64)
        name, arguments, tensors = FORM.timm(network.shape, subnet, state)
        made = timm.create_model(name, num_classes=0, **arguments).double().eval()
        made.load_state_dict(tensors)
        with torch.no_grad():
            for alone in (made, state.network()):
                assert (alone(images) - network(images, subnet)[:, 0]).abs().max() < 1e-12


def test_learned_positions_without_a_bias_of_keys_are_timms_with_zeros() -> None:
    changes = {"positions": "learned", "norm_eps": 1e-6}
    network = ours("vit_small_patch16_dinov3_qkvb", **changes)
    images = torch.randn(2, 3, SIDE, SIDE).double()
    state = extract(network, SPACE.smallest, torch.float64)
    name, arguments, tensors = FORM.timm(network.shape, SPACE.smallest, state)
    made = timm.create_model(name, num_classes=0, **arguments).double().eval()
    made.load_state_dict(tensors)
    with torch.no_grad():
        wanted = network(images, SPACE.smallest)[:, 0]
        for alone in (made, state.network()):
            assert (alone(images) - wanted).abs().max() < 1e-12


def test_an_onnx_file_turns_patches_at_any_sides(tmp_path) -> None:
    network = ours("vit_small_plus_patch16_dinov3_qkvb").float()
    plain = extract(network, SPACE.smallest).network()
    onnx_file.write(plain, FORM.feature, tmp_path / "model.onnx", SIDE, any_size=True)
    written = onnx_file.Network(tmp_path / "model.onnx")
    for sides in ((SIDE, SIDE), (96, 48)):
        images = torch.randn(2, 3, *sides)
        with torch.no_grad():
            wanted = network(images, SPACE.smallest)[:, 0]
        assert (written(images) - wanted).abs().max() < 1e-5


def test_what_has_no_rotary_form_is_named() -> None:
    shape = ours("vit_small_patch16_dinov3", norm_eps=1e-6).shape
    assert "eps of 1e-05" in FORM.not_timm(shape, INTACT)
    units = ours("vit_small_plus_patch16_dinov3_qkvb", swiglu=88).shape
    assert not FORM.not_timm(units, INTACT) and "not 44" in FORM.not_timm(units, SPACE.smallest)
    with pytest.raises(ValueError, match="head_dim in fours, not 6"):
        ElasticViT(ElasticSpace((12,), (1,)), image_size=32, positions="rope", head_dim=6)


def test_angles_are_those_of_timm_in_float32_too() -> None:
    witness = timm.layers.RotaryEmbeddingDinoV3(64)
    found = rope.angles(3, 5, 64, torch.zeros(1))
    sin, cos = witness.get_embed([3, 5]).chunk(2, dim=-1)
    wanted = torch.stack((cos, sin))[..., :32]
    assert torch.allclose(found, wanted, atol=1e-6, rtol=0)
