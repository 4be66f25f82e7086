"""Names and layouts of the ViT elsewhere: the published code's, timm's and DINOv2's.

Ours differs in one layout: the rows of qkv are stored head by head (head, q|k|v, channel),
elsewhere q|k|v first (q|k|v, head, channel).
"""

import re
from collections.abc import Mapping
from math import inf, isqrt, nextafter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.model.form import backbone_part, blocks_of, in_chans
from poa_ds.model.options import Backbone
from poa_ds.model.row_orders import (
    gate_major,
    head_major,
    third_major,
    unit_major,
    with_key_bias,
    without_key_bias,
)
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.vit import eva, hf, plain
from poa_ds.model.vit.network import ElasticViT
from poa_ds.model.vit.shape import VitShape
from poa_kernels.slices import alpha

ARCHITECTURE = "vit_small_patch16_224"  # of timm; model_args override every number of it
# the same of DINOv2's family: with patches of 14, with registers, with SwiGLU
DINOV2 = "vit_small_patch14_dinov2"
REGISTERS, GATED = "vit_small_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"
EPS = plain.EPS  # of timm's norms
# (published pattern, ours): longest first where one contains another
_BACKBONE = (
    (r"^(cls_token|pos_embed|reg_token|mask_token)$", r"embed.\1"),
    (r"^patch_embed\.proj\.", "embed.patch."),
    (r"\.(norm[12])\.norm\.", r".\1."),
    (r"^norm\.norm\.", "norm."),
    (r"\.linear\.", "."),
)


def from_published(
    state: Mapping[str, Tensor], head_dim: int = Backbone.head_dim
) -> dict[str, Tensor]:
    """The published ViT's state dict (with or without `backbone.`) under our names and layout.

    Keys of other parts (heads) are left out. Also reads DINOv2 and timm names, and block
    numbers in chunks (blocks.<chunk>.<i>).
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in backbone_part(state).items():
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        for pattern, replacement in _BACKBONE:
            name = re.sub(pattern, replacement, name)
        ours[name] = head_major(tensor, head_dim) if ".attn.qkv." in name else tensor
    return ours


def to_published(
    state: Mapping[str, Tensor], head_dim: int = Backbone.head_dim
) -> dict[str, Tensor]:
    """The inverse of `from_published`, without a prefix."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = name.replace("embed.patch.", "patch_embed.proj.", 1).removeprefix("embed.")
        plain = re.sub(r"(^|\.)(norm[12]?)\.", r"\1\2.norm.", plain)
        plain = re.sub(r"\.(qkv|proj|fc[12])\.(?=\w+$)", r".\1.linear.", plain)
        plain = plain.replace("patch_embed.proj.linear.", "patch_embed.proj.")
        theirs[plain] = third_major(tensor, head_dim) if ".attn.qkv." in name else tensor
    return theirs


def to_timm(state: Mapping[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
    """Our ViT's state dict under the names and layout of timm and DINOv2.

    With registers the class token's position is part of it, as timm has it then. A bias of queries
    and values alone stays one (q|v); rotary positions have no tensor.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = name.replace("embed.patch.", "patch_embed.proj.", 1).removeprefix("embed.")
        if ".attn.qkv." in name:
            parts = 2 if name.endswith("bias") and shape.qkv_bias == "no_key" else 3
            tensor = third_major(tensor, shape.head_dim, parts)
        elif ".mlp.fc1." in name and shape.swiglu:
            tensor = gate_major(tensor)
        theirs[plain] = tensor
    if shape.registers and shape.positions == "learned":
        own, positions = theirs["pos_embed"][:, :1], theirs["pos_embed"][:, 1:]
        theirs |= {"cls_token": theirs["cls_token"] + own, "pos_embed": positions.contiguous()}
    return theirs


def _ratio(hidden: int, width: int) -> float:
    """The ratio of which int(ratio * width) is `hidden`, as timm reads it."""
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else nextafter(ratio, inf)


def from_timm(state: Mapping[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
    """The inverse of `to_timm`; the class token's position is zero where the table has none."""
    own = dict(state)
    biases = {n: own.pop(n) for n in state if n.endswith(".qkv.bias")}
    ours = from_published(own, shape.head_dim)
    parts = 2 if shape.qkv_bias == "no_key" else 3
    ours |= {n: head_major(t, shape.head_dim, parts) for n, t in biases.items()}
    for name in [name for name in ours if shape.swiglu and ".mlp.fc1." in name]:
        ours[name] = unit_major(ours[name])
    positions = ours.get("embed.pos_embed")
    if positions is not None and isqrt(count := positions.shape[1]) ** 2 == count:
        ours["embed.pos_embed"] = F.pad(positions, (0, 0, 1, 0))
    return ours


class VitForm:
    """How sizes of an ElasticViT look outside: timm's own ViT, or a plain module like it."""

    module = plain
    first_conv, classifier, pool = "patch_embed.proj", "head", "token"
    features = "the tokens (B, 1 + registers + N, C): class token, registers, patches"
    fixed_size = True
    note = (
        "elsewhere timm resizes learned positions differently from the training, so features"
        " differ a little there; model.py of --format state-dict does as the training did"
    )

    title, published_block = "ViT", r"blocks\.\d"

    @staticmethod
    def network_of(state: Mapping[str, Tensor], head_dim: int) -> ElasticViT:
        _, tokens, width = state["pos_embed"].shape
        _, channels, _, patch = state["patch_embed.proj.weight"].shape
        ours = from_published(state, 1)
        depth = blocks_of(ours, r"blocks\.(\d+)\.")
        return ElasticViT(
            ElasticSpace((width,), (depth,)),
            image_size=round((tokens - 1) ** 0.5) * patch,
            patch_size=patch,
            head_dim=head_dim,
            mlp_ratio=len(ours["blocks.0.mlp.fc1.weight"]) // width,
            channels=channels,
        )

    @staticmethod
    def from_published(state: Mapping[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
        return from_published(state, shape.head_dim)

    @staticmethod
    def to_published(state: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        return to_published(state, head_dim)

    @staticmethod
    def extract(model: ElasticViT, subnet: Subnet, dtype: torch.dtype) -> dict[str, Tensor]:
        whole, width = model.space.intact.width, subnet.width
        first, second = model.shape.hidden(width)

        def cut(name: str, tensor: Tensor) -> Tensor:
            if name in ("embed.cls_token", "embed.pos_embed", "embed.reg_token"):
                return tensor[..., :width]
            rows = first if ".mlp.fc1." in name else len(tensor) * width // whole
            if tensor.ndim == 2:  # a linear layer
                columns = second if ".mlp.fc2." in name else width
                factor = alpha(tensor.shape[1], columns, model.input_scale)
                return tensor[:rows, :columns] * factor
            return tensor[:rows]

        place = {block: i for i, block in enumerate(model.members(subnet))}
        kept = {}
        for name, tensor in model.plain_state().items():
            part, _, rest = name.partition(".")
            if part == "blocks":
                number, _, rest = rest.partition(".")
                if int(number) not in place:
                    continue
                name = f"blocks.{place[int(number)]}.{rest}"
            if model.norm.widths and (".norm" in name or part == "norm"):
                tensor = tensor[model.norm.row(width)]
            exact = tensor if tensor.dtype == torch.float64 else tensor.float()
            if name != "embed.mask_token":
                kept[name] = cut(name, exact).to("cpu", dtype).contiguous()
        return to_timm(kept, model.shape)

    @staticmethod
    def from_plain(state: Mapping[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
        return from_timm(state, shape)

    @staticmethod
    def arguments(
        shape: VitShape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[str, dict[str, Any]]:
        layer_scale = any(name.endswith(".gamma") for name in state)
        hidden, _ = shape.hidden(subnet.width)
        extra: dict[str, Any] = {**in_chans(shape)}
        if shape.registers:
            extra |= {"reg_tokens": shape.registers, "no_embed_class": True}
        if shape.norm_eps != EPS:
            extra["norm_eps"] = shape.norm_eps
        if shape.swiglu:
            extra["gated"] = True
        if shape.positions != "learned":
            extra["pos_embed"] = shape.positions
            extra.pop("no_embed_class", None)
        if shape.qkv_bias != "full":
            extra["qkv_bias"] = {"no_key": "no_key", "none": False}[shape.qkv_bias]
        name = DINOV2 if shape.patch_size == 14 else ARCHITECTURE
        return REGISTERS if shape.registers else name, {
            "img_size": shape.image_size,
            "patch_size": shape.patch_size,
            "embed_dim": subnet.width,
            "depth": subnet.depth,
            "num_heads": subnet.width // shape.head_dim,
            "mlp_ratio": _ratio(hidden, subnet.width) if shape.swiglu else shape.mlp_ratio,
            "init_values": shape.layer_scale if layer_scale else None,
            **extra,
        }

    @classmethod
    def timm(
        cls, shape: VitShape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        name, arguments = cls.arguments(shape, subnet, state)
        if shape.positions == "rope":
            return eva.timm(shape, arguments, state)
        gated = arguments.pop("gated", False)  # timm's by the name of its network
        tensors = dict(state)
        if shape.qkv_bias == "no_key":  # timm has all of it or nothing
            del arguments["qkv_bias"]
            biases = {n: t for n, t in tensors.items() if n.endswith(".qkv.bias")}
            tensors |= {n: with_key_bias(t, subnet.width) for n, t in biases.items()}
        return GATED if gated else name, arguments, tensors

    @staticmethod
    def not_timm(shape: VitShape, subnet: Subnet) -> str:
        if shape.positions == "rope":
            return eva.not_timm(shape, subnet)
        return f"its norms have an eps of {EPS:g}" if shape.norm_eps != EPS else ""

    @staticmethod
    def not_hf(shape: VitShape, subnet: Subnet) -> str:
        return hf.refused(shape, subnet)

    @staticmethod
    def hf(
        shape: VitShape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return hf.written(shape, subnet, state)

    @staticmethod
    def hf_features(hidden: Tensor, shape: VitShape, rows: int) -> Tensor:
        return hidden

    @staticmethod
    def of_timm(state: Mapping[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
        if shape.positions == "rope":
            return eva.from_timm(state)
        if shape.qkv_bias != "no_key":
            return dict(state)
        biases = {n: t for n, t in state.items() if n.endswith(".qkv.bias")}
        return dict(state) | {n: without_key_bias(t, len(t) // 3) for n, t in biases.items()}

    @staticmethod
    def feature(features: Tensor) -> Tensor:
        return features[:, 0]

    @staticmethod
    def tokens(features: Tensor, shape: VitShape) -> Tensor:
        if not shape.registers:
            return features
        return torch.cat((features[:, :1], features[:, 1 + shape.registers :]), dim=1)


FORM = VitForm()
