"""Registers, gated MLPs and norms of timm's DINOv2 networks, with timm as the witness."""

from functools import partial

import pytest
import timm
import torch
from torch import nn

from poa_ds.export.extract import extract
from poa_ds.model.row_orders import head_major, unit_major
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.vit.names import FORM
from poa_ds.model.vit.network import ElasticViT

DIM, DEPTH, SIDE = 64, 2, 56
SPACE = ElasticSpace((32, 64), (1, 2))
INTACT = Subnet(DIM, DEPTH)
GATED = {"mlp_ratio": 2 * 88 / DIM, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
# (arguments of timm's, of ours)
PARTS = {
    "registers": ({"reg_tokens": 3, "no_embed_class": True}, {"registers": 3}),
    "swiglu": (GATED, {"swiglu": 88}),
    "norm_eps": ({"norm_layer": partial(nn.LayerNorm, eps=1e-2)}, {"norm_eps": 1e-2}),
}


def theirs(part: str) -> nn.Module:
    """timm's network with random values everywhere, in float64."""
    torch.manual_seed(1)
    network = timm.create_model(
        "vit_small_patch14_dinov2",
        img_size=SIDE,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=4,
        num_classes=0,
        **PARTS[part][0],
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.double().eval()


def ours(part: str) -> ElasticViT:
    """An elastic network with random values everywhere, in float64."""
    torch.manual_seed(2)
    network = ElasticViT(
        SPACE, image_size=SIDE, patch_size=14, head_dim=16, layer_scale=0.5, **PARTS[part][1]
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.double().eval()


def loaded(part: str, state: dict[str, torch.Tensor]) -> ElasticViT:
    """Ours with the tensors of timm's, written down name by name."""
    network, found = ours(part), {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            tensor = head_major(tensor, 16)
        elif ".mlp.fc1." in name and part == "swiglu":
            tensor = unit_major(tensor)
        elif name == "pos_embed" and part == "registers":
            tensor = torch.cat((torch.zeros(1, 1, DIM, dtype=tensor.dtype), tensor), dim=1)
        name = name.replace("patch_embed.proj", "embed.patch")
        own = ("cls_token", "pos_embed", "reg_token")
        found[f"embed.{name}" if name in own else name] = tensor
    found["embed.mask_token"] = network.embed.mask_token.detach()
    network.load_state_dict(found)
    return network


@pytest.mark.parametrize("part", PARTS)
def test_the_intact_network_is_timms(part: str) -> None:
    witness = theirs(part)
    network, images = loaded(part, witness.state_dict()), torch.randn(2, 3, SIDE, SIDE).double()
    with torch.no_grad():
        wanted = FORM.tokens(witness.forward_features(images), network.shape)
        found = network(images, INTACT)
    assert found.shape == (2, 1 + 16, DIM)
    assert (found - wanted).abs().max() < 1e-12
    other, same = torch.randn(2, 17, DIM).double(), partial(torch.autograd.grad)
    of = "blocks.1.mlp.fc2.weight"
    ours_of = same((network(images, INTACT) * other).sum(), network.get_parameter(of))[0]
    features = FORM.tokens(witness.forward_features(images), network.shape)
    theirs_of = same((features * other).sum(), witness.get_parameter(of))[0]
    assert (ours_of - theirs_of).abs().max() < 1e-10


def test_masks_and_the_mask_token_leave_registers_alone() -> None:
    network, images = ours("registers"), torch.randn(2, 3, SIDE, SIDE).double()
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[0, 3] = True
    seen: list[torch.Tensor] = []
    hook = network.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(images, INTACT)
        network(images, INTACT, masks)
    hook.remove()
    plain, masked = (rows.view(2, 1 + 3 + 16, DIM) for rows in seen)
    changed = (plain != masked).any(dim=-1).nonzero().tolist()
    assert changed == [[0, 1 + 3 + 3]]
    assert torch.equal(plain[:, 1:4], network.embed.reg_token.expand(2, -1, -1))


@pytest.mark.parametrize("side", [SIDE, 70, 42])
@pytest.mark.parametrize("part", PARTS)
def test_every_size_alone_is_the_slice(part: str, side: int) -> None:
    network, images = ours(part), torch.randn(2, 3, side, side).double()
    for subnet in SPACE.subnets():
        state = extract(network, subnet, torch.float64)
        with torch.no_grad():
            alone = FORM.tokens(state.network().forward_features(images), network.shape)
            assert (network(images, subnet) - alone).abs().max() < 1e-12, subnet
        count = sum(tensor.numel() for tensor in state.values())
        # where the class token has no position of its own, both are one
        assert count == network.parameter_count(subnet) - subnet.width * (part == "registers")


@pytest.mark.parametrize("part", ["registers", "swiglu"])
def test_a_size_is_a_network_of_timm(part: str) -> None:
    network, images = ours(part), torch.randn(2, 3, SIDE, SIDE).double()
    for subnet in SPACE.subnets():
        state = extract(network, subnet, torch.float64)
        name, arguments, tensors = FORM.timm(network.shape, subnet, state)
        made = timm.create_model(name, num_classes=0, **arguments).double().eval()
        made.load_state_dict(tensors)
        with torch.no_grad():
            alone = FORM.tokens(made.forward_features(images), network.shape)
            assert (network(images, subnet) - alone).abs().max() < 1e-12, subnet


@pytest.mark.parametrize("part", ["registers", "swiglu"])
def test_a_plain_state_comes_back_with_every_bit(part: str) -> None:
    state = theirs(part).state_dict()
    network = ours(part)
    found = FORM.from_plain(state, network.shape)
    network.load_state_dict(found, strict=False)
    back = extract(network, INTACT, torch.float64)
    assert back.keys() == state.keys() and all(torch.equal(back[n], state[n]) for n in state)


def test_timm_is_not_told_to_take_norms_that_it_has_not() -> None:
    assert "eps" in FORM.not_timm(ours("norm_eps").shape, INTACT)
    assert not FORM.not_timm(ours("swiglu").shape, INTACT)
