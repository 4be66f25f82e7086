"""A plain three-pass network: what `bench step` measures ours against.

Every network and every crop size is a call of its own, inputs are scaled, weights are sliced.
Parameter names and shapes are ours, so that both start from the same weights; nothing else is.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from poa_ds.model.backbone import DropPath, ElasticBackbone
from poa_ds.model.layers import scale_inputs
from poa_ds.model.shape import vit_parts
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe


@dataclass(frozen=True)
class Drop:
    """Stochastic depth of one residual branch: the sequences that take it, and their factor."""

    chosen: Tensor
    factor: float


Drops = dict[int, tuple[Drop, Drop]]  # block -> (attention branch, MLP branch)


class Linear(nn.Linear):
    """The leading rows and columns of the weight; x (..., in) -> (..., out)."""

    input_scale = 1.0

    def forward(self, x: Tensor, out: int) -> Tensor:
        c = x.shape[-1]
        if c < self.in_features:
            x = x * (self.in_features / c) ** self.input_scale
        return F.linear(x, self.weight[:out, :c], self.bias[:out])


class LayerNorm(nn.LayerNorm):
    """Layer norm of the active channels."""

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        return F.layer_norm(x, (c,), self.weight[:c], self.bias[:c], self.eps)


class LayerScale(nn.Module):
    """A factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[: x.shape[-1]]


class Attention(nn.Module):
    """The first heads; rows of qkv head by head, so that they are a slice as well."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x, 3 * c).reshape(b, n, c // self.head_dim, 3, self.head_dim)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c), c)


class Mlp(nn.Module):
    """Two linear layers; the hidden width follows the input's."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.fc1, self.fc2 = Linear(dim, ratio * dim), Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        return self.fc2(F.gelu(self.fc1(x, self.ratio * c)), c)


class Block(nn.Module):
    """One transformer block on one batch of sequences (B, N, C)."""

    def __init__(self, dim: int, head_dim: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(dim, 1e-6), LayerNorm(dim, 1e-6)
        self.attn, self.mlp = Attention(dim, head_dim), Mlp(dim, ratio)
        self.ls1, self.ls2 = LayerScale(dim), LayerScale(dim)

    def forward(self, x: Tensor, drops: tuple[Drop, Drop] | None) -> Tensor:
        first, second = drops or (None, None)
        x = residual(x, lambda y: self.ls1(self.attn(self.norm1(y))), first)
        return residual(x, lambda y: self.ls2(self.mlp(self.norm2(y))), second)


def residual(x: Tensor, branch, drop: Drop | None) -> Tensor:
    """x + branch(x), of a subset of the sequences where stochastic depth is on."""
    if drop is None:
        return x + branch(x)
    out = branch(x[drop.chosen])
    return torch.index_add(x, 0, drop.chosen, out.to(x.dtype), alpha=drop.factor)


class Embed(nn.Module):
    """Patches, mask token, class token and positions, cut to the active width."""

    def __init__(self, dim: int, grid: int, patch_size: int, channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.patch = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.mask_token = nn.Parameter(torch.empty(1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid**2, dim))

    def forward(self, images: Tensor, c: int, masks: Tensor | None) -> Tensor:
        x = F.conv2d(images, self.patch.weight[:c], self.patch.bias[:c], self.patch.stride)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        if masks is not None:
            x = torch.where(masks[:, :, None], self.mask_token[:, :c].to(x.dtype), x)
        cls_token = self.cls_token[..., :c].to(x.dtype)
        x = torch.cat((cls_token.expand(len(x), -1, -1), x), dim=1)
        return x + self._positions(rows, columns, c)

    def _positions(self, rows: int, columns: int, c: int) -> Tensor:
        table, side = self.pos_embed[..., :c], self.grid
        if rows == columns == side:
            return table
        grid = table[:, 1:].float().reshape(1, side, side, c).permute(0, 3, 1, 2)
        # the + 0.1 is the published code's (docs/method.md 2)
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat((table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)


class Backbone(nn.Module):
    """Images (B, 3, S, S) -> normalised tokens (B, 1 + N, width) of one size."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        space = derived.space(recipe)
        options, dim = recipe.backbone, space.intact.width
        self.space, self.checkpointing = space, options.activation_checkpointing
        grid = recipe.crops.global_size // options.patch_size
        self.embed = Embed(dim, grid, options.patch_size, recipe.data.channels)
        self.blocks = nn.ModuleList(
            Block(dim, options.head_dim, options.mlp_ratio) for _ in range(space.intact.depth)
        )
        self.norm = LayerNorm(dim, 1e-6)

    def forward(
        self,
        images: Tensor,
        subnet: Subnet,
        masks: Tensor | None = None,
        drops: Drops | None = None,
    ) -> Tensor:
        x = self.embed(images, subnet.width, masks)
        for i in self.space.blocks(subnet.depth):
            chosen = drops[i] if drops else None
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.blocks[i], x, chosen, use_reentrant=False)
            else:
                x = self.blocks[i](x, chosen)
        return self.norm(x)

    @property
    def decay_depth(self) -> int:
        return len(self.blocks)

    def draw_drops(
        self,
        subnets: Sequence[Subnet],
        crops: Sequence[Tensor],
        rate: float,
        generator: torch.Generator,
    ) -> list[list[Drops | None]]:
        """[subnet][crop size] -> the choices of every block, in the order that ours draws."""
        counts, device = [len(images) for images in crops], crops[0].device
        return draw_drops(self.space, subnets, counts, rate, generator, device)


@dataclass(frozen=True)
class OneAtATime:
    """Another architecture: ours, without lockstep. Each crop size and student is a pass alone."""

    backbone: ElasticBackbone

    def __call__(
        self,
        images: Tensor,
        subnet: Subnet,
        masks: Tensor | None = None,
        drops: DropPath | None = None,
    ) -> Tensor:
        return self.backbone.streams((images,), (subnet,), (masks,), drops)[0][0]

    def draw_drops(
        self,
        subnets: Sequence[Subnet],
        crops: Sequence[Tensor],
        rate: float,
        generator: torch.Generator,
    ) -> list[list[DropPath | None]]:
        """[subnet][crop size] -> the random choices of every block: ours, cut by crop size."""
        whole, device = self.backbone, crops[0].device
        drawn = whole.draw_drop_path(whole.packing(crops), subnets, rate, generator, device)
        if drawn is None:
            return [[None for _ in crops] for _ in subnets]
        counts = [len(images) for images in crops]

        def cut(chosen: tuple[Tensor, Tensor] | None, crop: int) -> tuple[tuple | None]:
            return (chosen and tuple(factors.split(counts)[crop] for factors in chosen),)

        def alone(subnet: int, crop: int) -> DropPath:
            return DropPath(tuple(cut(row[subnet], crop) for row in drawn.drops))

        return [[alone(i, crop) for crop in range(len(crops))] for i in range(len(subnets))]


class Head(nn.Module):
    """Features (R, width) -> scores (R, K) against weight-normed prototypes."""

    def __init__(self, dim: int, prototypes: int, hidden: int, bottleneck: int, layers: int):
        super().__init__()
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        self.first = Linear(widths[0], widths[1])
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths[1:]))
        self.weight_g = nn.Parameter(torch.empty(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, bottleneck))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x, self.first.out_features)
        for layer in self.rest:
            x = layer(F.gelu(x))
        prototypes = torch._weight_norm(self.weight_v, self.weight_g, 0)
        return F.linear(F.normalize(x, dim=-1), prototypes).float()


class HeadBank(nn.ModuleList):
    """Scores of every head."""

    def __init__(self, recipe: Recipe) -> None:
        options = recipe.heads
        dim = derived.shape(recipe).features(derived.space(recipe).intact)
        shape = (options.hidden, options.bottleneck, options.layers)
        super().__init__(Head(dim, k, *shape) for k in options.prototypes)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(x) for head in self]


PLAIN = {"vit": Backbone}


class Network(nn.Module):
    """Student or teacher."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        name = recipe.backbone.name
        plain = name in PLAIN and not vit_parts(recipe.backbone)
        self.backbone = PLAIN[name](recipe) if plain else backbone(recipe)
        self.heads = HeadBank(recipe)
        self.ibot_heads = HeadBank(recipe) if recipe.heads.separate_ibot else None
        scale_inputs(self, recipe.backbone.input_scale)

    @property
    def one_size(self) -> "Backbone | OneAtATime":
        """The backbone as a pass of one size on crops of one resolution."""
        ours = isinstance(self.backbone, ElasticBackbone)
        return OneAtATime(self.backbone) if ours else self.backbone

    def scores(self, cls: Tensor, patches: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(class scores, patch scores) of each head."""
        if self.ibot_heads is not None:
            return list(zip(self.heads(cls), self.ibot_heads(patches), strict=True))
        both = self.heads(torch.cat((cls, patches)))
        return [tuple(scores.split([len(cls), len(patches)])) for scores in both]


def draw_drops(
    space: ElasticSpace,
    subnets: Sequence[Subnet],
    crops: Sequence[int],
    rate: float,
    generator: torch.Generator,
    device: torch.device,
) -> list[list[Drops | None]]:
    """[subnet][crop size] -> the choices of every block, in the order that ours draws."""
    found: list[list[Drops | None]] = [[{} if rate else None for _ in crops] for _ in subnets]
    for block in range(space.intact.depth) if rate else ():
        for subnet, of_subnet in zip(subnets, found, strict=True):
            if block in space.blocks(subnet.depth):
                pairs = [[_drop(n, rate, generator, device) for n in crops] for _ in range(2)]
                for drops, attention, mlp in zip(of_subnet, *pairs, strict=True):
                    drops[block] = (attention, mlp)
    return found


def _drop(n: int, rate: float, generator: torch.Generator, device: torch.device) -> Drop:
    if rate > 0.1:  # the batch-subset variant of DINOv2
        chosen = torch.randperm(n, generator=generator)[: max(int(n * (1 - rate)), 1)]
        return Drop(chosen.to(device), n / len(chosen))
    chosen = (torch.rand(n, generator=generator) >= rate).nonzero().flatten()
    return Drop(chosen.to(device), 1 / (1 - rate))
