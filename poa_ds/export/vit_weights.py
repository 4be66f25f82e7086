"""ViTs of other projects by their tensors: which they are, and what they are under our names.

Names and layouts are those of timm, of DINOv2's own repository, and of DeiT's. What tensors do not
tell, such as the channels of a head, the caller does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from poa_ds.checkpoint.deployed import differences, shapes
from poa_ds.model.row_orders import unit_major
from poa_ds.model.vit.names import from_published
from poa_ds.system.errors import UserError

SUPPORTED = (
    "supported are ViTs with learned positions, a class token and a final norm: DINOv2 (S, B, L, g;"
    " with registers or without), DeiT, DeiT III, and timm's plain ViTs"
)
HEAD_DIM, HEAD_DIMS = 64, {1280: 80}  # channels of a head, at some widths: no tensor tells them
DROPPED = re.compile(r"^(head|head_dist|pre_logits|fc)\.|^teacher_|^(dino|ibot)_head\.")
RENAMED = (("register_tokens", "reg_token"), (".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))
# (a part of a tensor's name, whose it is)
STRANGERS = (
    ("layers.0.blocks.", "a Swin"),
    ("rope", "DINOv3 or EUPE: their positions are rotary"),
    ("gamma_1", "DINOv3, EUPE or EVA: their positions are rotary, or their blocks others"),
    ("storage_tokens", "DINOv3: its positions are rotary"),
    ("logit_scale", "CLIP or SigLIP, image and text together"),
    ("vision_model.", "CLIP or SigLIP in transformers' layout"),
    ("visual.", "a CLIP"),
    ("norm_pre.", "a CLIP: it has a norm before its blocks, and often another GELU"),
    ("attn_pool.", "SigLIP: its feature is a pooling of its own"),
    ("dist_token", "a distilled DeiT: it has a second class token"),
    ("fc_norm.", "a ViT whose feature is the mean of the patches"),
    ("q_norm.", "a ViT that norms queries and keys"),
    ("relative_position", "a network with relative positions"),
)


@dataclass(frozen=True)
class Found:
    """A network by its tensors.

    image_size: of its positions, pixels of a side. swiglu: units of its gated MLP, or 0.
    """

    width: int
    depth: int
    head_dim: int
    patch_size: int
    image_size: int
    mlp_ratio: int
    registers: int
    swiglu: int
    tensors: dict[str, Tensor]  # of an ElasticViT of this one size


def recognised(state: Mapping[str, Tensor], *, head_dim: int | None, what: str) -> Found:
    """The network whose state this is.

    head_dim: None is what its family has. what: the file, for errors. Tensors keep their type.
    UserError: none that is supported; it says what it seems to be.
    """
    own = _backbone(state)
    _refuse_strangers(own, what)
    try:
        patch, positions = own["patch_embed.proj.weight"], own["pos_embed"]
        qkv, fc1 = own["blocks.0.attn.qkv.weight"], own["blocks.0.mlp.fc1.weight"]
        fc2 = own["blocks.0.mlp.fc2.weight"]
    except KeyError as error:
        raise UserError(f"{what} has no {error}, as a ViT would: {SUPPORTED}") from error
    width, depth = qkv.shape[1], 1 + max(int(m[1]) for n in own if (m := _BLOCK.match(n)))
    head_dim = head_dim or HEAD_DIMS.get(width, HEAD_DIM)
    if width % head_dim or len(qkv) != 3 * width:
        raise UserError(
            f"{what}: a width of {width} does not divide into heads of {head_dim} channels: say"
            " --head-dim"
        )
    registers = own["reg_token"].shape[1] if "reg_token" in own else 0
    gated = len(fc1) == 2 * fc2.shape[1]
    if not gated and len(fc1) % width:
        raise UserError(
            f"{what}: its MLP has {len(fc1)} units, no multiple of {width}: {SUPPORTED}"
        )
    side = isqrt(positions.shape[1])
    if side**2 not in (positions.shape[1], positions.shape[1] - 1):
        raise UserError(f"{what}: {positions.shape[1]} positions are no square grid: {SUPPORTED}")
    found = Found(
        width=width,
        depth=depth,
        head_dim=head_dim,
        patch_size=patch.shape[-1],
        image_size=side * patch.shape[-1],
        mlp_ratio=4 if gated else len(fc1) // width,
        registers=registers,
        swiglu=fc2.shape[1] if gated else 0,
        tensors=_ours(own, head_dim, gated, width, depth),
    )
    _check(found, what)
    return found


_BLOCK = re.compile(r"blocks\.(\d+)\.")


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without heads and prefixes, under timm's names."""
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for prefix in ("backbone.", "model.", "teacher.backbone."):
        inside = {n.removeprefix(prefix): t for n, t in plain.items() if n.startswith(prefix)}
        plain = inside or plain
    own: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        if DROPPED.match(name):
            continue
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        own[name] = tensor
    return own


def _refuse_strangers(own: Mapping[str, Tensor], what: str) -> None:
    for part, whose in STRANGERS:
        name = next((name for name in own if part in name), None)
        if name:
            raise UserError(f"{what} seems to be {whose} ({name}): {SUPPORTED}")


def _ours(
    own: Mapping[str, Tensor], head_dim: int, gated: bool, width: int, depth: int
) -> dict[str, Tensor]:
    """Under our names and layouts, with what they leave out: it is there and does nothing."""
    ours = from_published(own, head_dim)
    like = own["blocks.0.attn.qkv.weight"]
    for block in range(depth):
        for name in ("ls1.gamma", "ls2.gamma"):
            ours.setdefault(f"blocks.{block}.{name}", like.new_ones(width))
        ours.setdefault(f"blocks.{block}.attn.qkv.bias", like.new_zeros(3 * width))
        if gated:
            for name in ("weight", "bias"):
                name = f"blocks.{block}.mlp.fc1.{name}"
                ours[name] = unit_major(ours[name])
    ours.setdefault("embed.mask_token", like.new_zeros(1, width))
    if "embed.cls_token" in ours and isqrt(count := ours["embed.pos_embed"].shape[1]) ** 2 == count:
        ours["embed.pos_embed"] = F.pad(ours["embed.pos_embed"], (0, 0, 1, 0))
    return ours


def _check(found: Found, what: str) -> None:
    """UserError: a tensor is missing, left over, or of another shape than the first ones say."""
    c, units = found.width, found.swiglu or found.mlp_ratio * found.width
    rows = 2 * units if found.swiglu else units
    wanted: dict[str, tuple[int, ...]] = {
        "embed.patch.weight": (c, 3, found.patch_size, found.patch_size),
        "embed.patch.bias": (c,),
        "embed.cls_token": (1, 1, c),
        "embed.mask_token": (1, c),
        "embed.pos_embed": (1, 1 + (found.image_size // found.patch_size) ** 2, c),
        "norm.weight": (c,),
        "norm.bias": (c,),
    }
    if found.registers:
        wanted["embed.reg_token"] = (1, found.registers, c)
    layers = {"attn.qkv": (3 * c, c), "attn.proj": (c, c), "mlp.fc1": (rows, c)}
    layers["mlp.fc2"] = (c, units)
    for block in range(found.depth):
        for name, (out, columns) in layers.items():
            wanted[f"blocks.{block}.{name}.weight"] = (out, columns)
            wanted[f"blocks.{block}.{name}.bias"] = (out,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            wanted[f"blocks.{block}.{name}"] = (c,)
        wanted |= {f"blocks.{block}.{name}": (c,) for name in ("ls1.gamma", "ls2.gamma")}
    if problems := differences(wanted, shapes(found.tensors)):
        raise UserError(f"{what}: {'; '.join(problems)} (our names): {SUPPORTED}")


def at_resolution(table: Tensor, grid: int) -> Tensor:
    """The positions (1, 1 + N, C) for a grid of other sides, as timm makes them when it loads.

    Bicubic with antialiasing in float32, which is not how training resizes (docs/method.md 2): it
    is done once, and the table is that of the run from then on.
    """
    side = isqrt(table.shape[1] - 1)
    if side == grid:
        return table
    patches = rearrange(table[:, 1:].float(), "1 (r k) c -> 1 c r k", r=side)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True)
    patches = rearrange(patches, "1 c r k -> 1 (r k) c").to(table.dtype)
    return torch.cat((table[:, :1], patches), dim=1)
