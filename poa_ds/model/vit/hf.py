"""ViTs as transformers has them: DINOv2's, with registers or none, and DINOv3's rotary ones.

Names of tensors are those of files on the hub, which every version of transformers reads.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from poa_ds.model.space import Subnet
from poa_ds.model.vit.shape import VitShape

ALIGNED = 8  # units of DINOv2's gated MLPs are a multiple of it
PLAIN, REGISTERS, ROTARY = "dinov2", "dinov2_with_registers", "dinov3_vit"
CLASSES = {PLAIN: "Dinov2Model", REGISTERS: "Dinov2WithRegistersModel", ROTARY: "DINOv3ViTModel"}
# parts of a block: (timm's name, DINOv2's, DINOv3's)
_PARTS = (
    ("norm1", "norm1", "norm1"),
    ("norm2", "norm2", "norm2"),
    ("attn.proj", "attention.output.dense", "attention.o_proj"),
    ("mlp.fc1", "mlp.fc1", "mlp.up_proj"),
    ("mlp.fc2", "mlp.fc2", "mlp.down_proj"),
)
_QKV = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))


def refused(shape: VitShape, subnet: Subnet) -> str:
    """Why transformers has no such network, or an empty text."""
    if shape.positions == "rope":
        counted = len(torch.arange(0, 1, 4 / shape.head_dim))  # as transformers counts them
        if counted != shape.head_dim // 4:
            return (
                f"its DINOv3 computes {counted} periods of positions for heads of"
                f" {shape.head_dim} channels, the training {shape.head_dim // 4}"
            )
        return ""
    units, ratio = _gated(shape, subnet)
    if shape.swiglu and _units(subnet.width, ratio) != units:
        return (
            f"no whole mlp_ratio of its DINOv2 gives gated MLPs of {units} units at width"
            f" {subnet.width}"
        )
    return ""


def written(
    shape: VitShape, subnet: Subnet, state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, state) of transformers. state: plain, under timm's names."""
    kind = ROTARY if shape.positions == "rope" else REGISTERS if shape.registers else PLAIN
    config = {
        "model_type": kind,
        "architectures": [CLASSES[kind]],
        "hidden_size": subnet.width,
        "num_hidden_layers": subnet.depth,
        "num_attention_heads": subnet.width // shape.head_dim,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "num_channels": shape.channels,
        "layer_norm_eps": shape.norm_eps,
        "layerscale_value": shape.layer_scale,
        "hidden_act": "silu" if shape.swiglu else "gelu",
    }
    if kind == ROTARY:
        bias = shape.qkv_bias
        units = shape.hidden(subnet.width)[1]
        config |= {"use_gated_mlp": shape.swiglu > 0, "intermediate_size": units}
        config |= {"query_bias": bias != "none", "value_bias": bias != "none"}
        config |= {"key_bias": bias == "full", "num_register_tokens": shape.registers}
    else:
        config |= {"qkv_bias": shape.qkv_bias != "none", "use_swiglu_ffn": shape.swiglu > 0}
        config["mlp_ratio"] = _gated(shape, subnet)[1] if shape.swiglu else shape.mlp_ratio
        config |= {"num_register_tokens": shape.registers} if shape.registers else {}
        config |= {} if shape.registers else {"use_mask_token": False}
    named = dict(_named(shape, subnet, state, kind))
    return config, {name: tensor.contiguous().clone() for name, tensor in named.items()}


def _gated(shape: VitShape, subnet: Subnet) -> tuple[int, int]:
    """(units of its gated MLPs, the mlp_ratio that is nearest to them)."""
    units = shape.hidden(subnet.width)[1]
    return units, max(1, round(units * 3 / 2 / subnet.width))


def _units(width: int, ratio: int) -> int:
    """What DINOv2 makes of a ratio: two thirds of the hidden units, rounded up to eights."""
    return (int(width * ratio * 2 / 3) + 7) // ALIGNED * ALIGNED


def _named(
    shape: VitShape, subnet: Subnet, state: Mapping[str, Tensor], kind: str
) -> Iterator[tuple[str, Tensor]]:
    rotary, width = kind == ROTARY, subnet.width
    places = 1 + shape.grid(shape.image_size) ** 2
    yield "embeddings.cls_token", state["cls_token"]
    if kind != PLAIN:
        like = state["cls_token"]
        yield "embeddings.register_tokens", state.get("reg_token", like.new_zeros(1, 0, width))
        # nothing is masked any more, but transformers has a place for it
        yield "embeddings.mask_token", like.new_zeros((1, 1, width) if rotary else (1, width))
    if not rotary:
        table = state.get("pos_embed", state["cls_token"].new_zeros(1, places, width))
        if table.shape[1] < places:  # with registers the class token's is in the token itself
            table = torch.cat((torch.zeros_like(table[:, :1]), table), dim=1)
        yield "embeddings.position_embeddings", table
    for end in ("weight", "bias"):
        patch = "embeddings.patch_embeddings" + ("" if rotary else ".projection")
        yield f"{patch}.{end}", state[f"patch_embed.proj.{end}"]
        yield f"norm.{end}" if rotary else f"layernorm.{end}", state[f"norm.{end}"]
    for block in range(subnet.depth):
        own = {
            name.removeprefix(f"blocks.{block}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"blocks.{block}.")
        }
        prefix = f"layer.{block}" if rotary else f"encoder.layer.{block}"
        for name, tensor in _block(shape, width, own, rotary=rotary):
            yield f"{prefix}.{name}", tensor


def _block(
    shape: VitShape, width: int, own: Mapping[str, Tensor], *, rotary: bool
) -> Iterator[tuple[str, Tensor]]:
    """One block's tensors, under names without its number."""
    for end in ("weight", "bias"):
        for timm, second, third in _PARTS:
            tensor, name = own[f"{timm}.{end}"], third if rotary else second
            if shape.swiglu and rotary and timm == "mlp.fc1":
                gate, tensor = tensor.chunk(2)
                yield f"mlp.gate_proj.{end}", gate
            elif shape.swiglu and not rotary:
                name = name.replace("fc1", "weights_in").replace("fc2", "weights_out")
            yield f"{name}.{end}", tensor
    for scale in (1, 2):
        ones = own["norm1.weight"].new_ones(width)  # LayerScale was folded into the weights
        yield f"layer_scale{scale}.lambda1", own.get(f"ls{scale}.gamma", ones)
    names = [f"attention.{new}" if rotary else f"attention.attention.{old}" for old, new in _QKV]
    weights = own["attn.qkv.weight"].chunk(3)
    yield from ((f"{name}.weight", part) for name, part in zip(names, weights, strict=True))
    if shape.qkv_bias == "none":
        return
    biases = list(own["attn.qkv.bias"].split(width))
    if shape.qkv_bias == "no_key":
        biases.insert(1, torch.zeros_like(biases[0]))
    for name, part in zip(names, biases, strict=True):
        if not (rotary and shape.qkv_bias == "no_key" and name.endswith("k_proj")):
            yield f"{name}.bias", part
