"""ViTs of other projects by their tensors: which they are, and what they are under our names.

Names and layouts are those of timm, of DINOv2's and DINOv3's own repositories, and of DeiT's. What
tensors do not tell, such as the channels of a head, the caller does, or the family.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from poa_ds.checkpoint.deployed import differences, shapes
from poa_ds.model.options import Positions, QkvBias
from poa_ds.model.space import ElasticSpace
from poa_ds.model.vit import eva
from poa_ds.model.vit.names import EPS, from_timm
from poa_ds.model.vit.network import ElasticViT
from poa_ds.system.errors import UserError

SUPPORTED = (
    "supported are ViTs with a class token and a final norm: DINOv2 (S, B, L, g; with registers or"
    " without), DINOv3 and EUPE (all ViTs), DeiT, DeiT III, and timm's plain ViTs"
)
# channels of a head, and at some widths others: no tensor tells them
HEAD_DIM = 64
HEAD_DIMS: Mapping[Positions, Mapping[int, int]] = {"learned": {1280: 80}, "rope": {4096: 128}}
DINOV3_SIDE = 256  # pixels: timm's size of these networks, which have no table to tell one
DROPPED = re.compile(
    r"^(head|head_dist|pre_logits|fc|projectors|local_cls_norm)\.|^teacher_|^(dino|ibot)_head\."
    r"|^rope(_embed)?\.periods$"
)
RENAMED = (
    ("register_tokens", "reg_token"),
    ("storage_tokens", "reg_token"),
    (".mlp.w12.", ".mlp.fc1."),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
)
ROTARY = re.compile(r"gamma_1$|q_bias$|bias_mask$|^storage_tokens$|^rope(_embed)?\.periods$")
# (a part of a tensor's name, whose it is)
STRANGERS = (
    (".linear.", "the published POA code's: import it with --published and its recipe"),
    ("layers.0.blocks.", "a Swin"),
    ("logit_scale", "CLIP or SigLIP, image and text together"),
    ("vision_model.", "CLIP or SigLIP in transformers' layout"),
    ("visual.", "a CLIP"),
    ("embeddings.patch_embeddings", "a ViT in transformers' layout: take timm's or the authors'"),
    ("attn.q_proj.", "EVA-02: its blocks have other norms"),
    ("norm_pre.", "a CLIP: it has a norm before its blocks, and often another GELU"),
    ("attn_pool.", "SigLIP: its feature is a pooling of its own"),
    ("dist_token", "a distilled DeiT: it has a second class token"),
    ("fc_norm.", "a ViT whose feature is the mean of the patches"),
    ("q_norm.", "a ViT that norms queries and keys"),
    ("rope.freqs", "a ViT whose rotary positions are learned"),
    ("relative_position", "a network with relative positions"),
)


@dataclass(frozen=True)
class Found:
    """A network by its tensors.

    image_size: of its positions, pixels of a side. swiglu: units of its gated MLP, or 0. channels:
    of its images.
    """

    width: int
    depth: int
    head_dim: int
    patch_size: int
    image_size: int
    mlp_ratio: int
    registers: int
    swiglu: int
    positions: Positions
    qkv_bias: QkvBias
    norm_eps: float
    channels: int
    tensors: dict[str, Tensor]  # of `network`

    def network(self) -> ElasticViT:
        """The elastic network of this one size, without values."""
        with torch.device("meta"):
            return ElasticViT(
                ElasticSpace((self.width,), (self.depth,)),
                image_size=self.image_size,
                patch_size=self.patch_size,
                head_dim=self.head_dim,
                mlp_ratio=self.mlp_ratio,
                registers=self.registers,
                norm_eps=self.norm_eps,
                swiglu=self.swiglu,
                positions=self.positions,
                qkv_bias=self.qkv_bias,
                channels=self.channels,
            )


def recognised(state: Mapping[str, Tensor], *, head_dim: int | None, what: str) -> Found:
    """The network whose state this is.

    head_dim: None is what its family has. what: the file, for errors. Tensors keep their type.
    UserError: none that is supported; it says what it seems to be.
    """
    own, positions = _backbone(state, what)
    try:
        patch, qkv = own["patch_embed.proj.weight"], own["blocks.0.attn.qkv.weight"]
        fc1, fc2 = own["blocks.0.mlp.fc1.weight"], own["blocks.0.mlp.fc2.weight"]
        places = own["pos_embed"].shape[1] if positions == "learned" else 0
    except KeyError as error:
        raise UserError(f"{what} has no {error}, as a ViT would: {SUPPORTED}") from error
    width, depth = qkv.shape[1], 1 + max(int(m[1]) for n in own if (m := _BLOCK.match(n)))
    head_dim = head_dim or HEAD_DIMS[positions].get(width, HEAD_DIM)
    if width % head_dim or len(qkv) != 3 * width:
        raise UserError(
            f"{what}: a width of {width} does not divide into heads of {head_dim} channels: say"
            " --head-dim"
        )
    gated = len(fc1) == 2 * fc2.shape[1]
    if not gated and len(fc1) % width:
        raise UserError(
            f"{what}: its MLP has {len(fc1)} units, no multiple of {width}: {SUPPORTED}"
        )
    side = isqrt(places)
    if side**2 not in (places, places - 1):
        raise UserError(f"{what}: {places} positions are no square grid: {SUPPORTED}")
    bias = own.get("blocks.0.attn.qkv.bias")
    found = Found(
        width=width,
        depth=depth,
        head_dim=head_dim,
        patch_size=patch.shape[-1],
        image_size=side * patch.shape[-1] or DINOV3_SIDE,
        mlp_ratio=4 if gated else len(fc1) // width,
        registers=own["reg_token"].shape[1] if "reg_token" in own else 0,
        swiglu=fc2.shape[1] if gated else 0,
        positions=positions,
        qkv_bias="none" if bias is None else "no_key" if len(bias) == 2 * width else "full",
        norm_eps=eva.EPS if positions == "rope" else EPS,
        channels=patch.shape[1],
        tensors={},
    )
    _alike(own, found, what)
    network = found.network()
    tensors = _ours(own, network)
    if problems := differences(shapes(network.state_dict()), shapes(tensors)):
        raise UserError(f"{what}: {'; '.join(problems)} (our names): {SUPPORTED}")
    return replace(found, tensors=tensors)


_BLOCK = re.compile(r"blocks\.(\d+)\.")


def _backbone(state: Mapping[str, Tensor], what: str) -> tuple[dict[str, Tensor], Positions]:
    """Without heads and prefixes, under the names of timm's plain ViT; and what positions it has.

    UserError: it is none of these networks.
    """
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
    rotary = next((name for name in plain if ROTARY.search(name)), None)
    _refuse_strangers(own, rotary, what)
    try:
        return eva.from_timm(_masked(own, what)), "rope" if rotary else "learned"
    except KeyError as error:
        raise UserError(f"{what}: missing: {error}: {SUPPORTED}") from error


def _refuse_strangers(own: Mapping[str, Tensor], rotary: str | None, what: str) -> None:
    if rotary and "pos_embed" in own:
        raise UserError(f"{what} seems to be an EVA (pos_embed and {rotary}): {SUPPORTED}")
    for part, whose in STRANGERS:
        name = next((name for name in own if part in name), None)
        if name:
            raise UserError(f"{what} seems to be {whose} ({name}): {SUPPORTED}")
    if "patch_embed.proj.weight" in own and "pos_embed" not in own:
        if not rotary or "reg_token" not in own:
            raise UserError(
                f"{what} seems to be a ViT without positions, or with rotary ones that are not"
                f" DINOv3's (it lacks pos_embed, and registers or DINOv3's names): {SUPPORTED}"
            )


def _masked(own: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """With the masks of DINOv3's own files applied: keys have no bias."""
    kept = {name: t for name, t in own.items() if not name.endswith(".bias_mask")}
    for name in own.keys() - kept.keys():
        keys = own[name].chunk(3)[1]
        if keys.any():
            raise UserError(f"{what}: {name} keeps a bias of keys: {SUPPORTED}")
        bias = name.removesuffix("_mask")
        queries, _, values = own[bias].chunk(3)
        kept[bias] = torch.cat((queries, values))
    return kept


def _alike(own: Mapping[str, Tensor], found: Found, what: str) -> None:
    """UserError unless what is put in another order has the same rows in every block."""
    width, units = found.width, found.swiglu * 2 or found.mlp_ratio * found.width
    rows = {"qkv.weight": [3 * width], "qkv.bias": [2 * width, 3 * width]}
    rows |= {"fc1.weight": [units], "fc1.bias": [units]}
    for name, tensor in own.items():
        allowed = rows.get(".".join(name.split(".")[-2:]))
        if allowed and (not tensor.ndim or len(tensor) not in allowed):
            told = f"another shape: {name} {[*tensor.shape]}, rows {' or '.join(map(str, allowed))}"
            raise UserError(f"{what}: {told}: {SUPPORTED}")


def _ours(own: Mapping[str, Tensor], network: ElasticViT) -> dict[str, Tensor]:
    """Under our names and layouts, with what they leave out: it is there and does nothing."""
    width, like = network.space.intact.width, own["blocks.0.attn.qkv.weight"]
    ours = from_timm(own, network.shape)
    for block in range(len(network.blocks)):
        for name in ("ls1.gamma", "ls2.gamma"):
            ours.setdefault(f"blocks.{block}.{name}", like.new_ones(width))
    ours.setdefault("embed.mask_token", like.new_zeros(1, width))
    return ours


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
