"""ViTs with rotary positions as timm has them: DINOv3's, of its family EVA."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from poa_ds.model.form import in_chans
from poa_ds.model.space import Subnet
from poa_ds.model.vit.shape import VitShape

EPS = 1e-5  # of the norms of these networks
ALIGNED = 8  # hidden units of a gated MLP are a multiple of it
# (width of the whole network, gated): the middle of timm's name; arguments override its numbers
FAMILY = {
    (192, False): "tiny",
    (384, False): "small",
    (768, False): "base",
    (1024, False): "large",
    (384, True): "small_plus",
    (1280, True): "huge_plus",
    (4096, True): "7b",
}
OTHER = {False: "small", True: "small_plus"}
WITHOUT = "7b"  # has no name of a network with biases of queries and values, "tiny" no other


def not_timm(shape: VitShape, subnet: Subnet) -> str:
    """Why timm cannot express this size exactly, or an empty text."""
    units, _ = shape.hidden(subnet.width)
    if shape.norm_eps != EPS:
        return f"norms of networks with rotary positions have an eps of {EPS:g}"
    if shape.swiglu and units // 2 % ALIGNED:
        return f"gated MLPs have hidden units in eights, not {units // 2}"
    return ""


def timm(
    shape: VitShape, plain: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(architecture, model_args, state) of timm. plain: arguments of the plain network."""
    gated, same = shape.swiglu > 0, "img_size patch_size embed_dim depth num_heads init_values"
    arguments = {key: plain[key] for key in same.split()} | in_chans(shape)
    ratio = plain["mlp_ratio"] / 2 if gated else plain["mlp_ratio"]
    arguments |= {"mlp_ratio": ratio, "num_reg_tokens": shape.registers}
    arguments |= {"global_pool": "token", "qkv_bias": shape.qkv_bias != "none"}
    if gated:
        arguments["swiglu_align_to"] = ALIGNED
    if shape.qkv_bias == "full":
        arguments["attn_type"] = "rope"  # timm's attention with a bias of keys
    size = FAMILY.get((shape.widest, gated), OTHER[gated])
    biased = size == "tiny" or (shape.qkv_bias != "none" and size != WITHOUT)
    end = "_qkvb" if biased else ""
    return f"vit_{size}_patch16_dinov3{end}", arguments, _named(state, shape)


def _named(state: Mapping[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
    """A plain state under timm's names."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block, _, last = name.rpartition(".")
        if last == "gamma":
            theirs[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = tensor
        elif name.endswith(".attn.qkv.bias") and shape.qkv_bias == "no_key":
            at = block.removesuffix(".qkv")
            theirs |= dict(zip((f"{at}.q_bias", f"{at}.v_bias"), _halves(tensor), strict=True))
        elif ".mlp.fc1." in name and shape.swiglu:
            names = (f"{block}_g.{last}", f"{block}_x.{last}")
            theirs |= dict(zip(names, _halves(tensor), strict=True))
        else:
            theirs[name] = tensor
    return theirs


def _halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    one, other = tensor.chunk(2)
    return one.clone(), other.clone()


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain state of timm's tensors. KeyError: one of two that belong together is missing."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".q_bias"):
            values = state[name.replace(".q_bias", ".v_bias")]
            plain[name.replace(".q_bias", ".qkv.bias")] = torch.cat((tensor, values))
        elif ".mlp.fc1_g." in name:
            values = state[name.replace("fc1_g", "fc1_x")]
            plain[name.replace("fc1_g", "fc1")] = torch.cat((tensor, values))
        elif not (name.endswith(".v_bias") or ".mlp.fc1_x." in name):
            plain[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = tensor
    return plain
