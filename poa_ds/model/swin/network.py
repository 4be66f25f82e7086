"""The elastic Swin transformer: four stages of blocks, widths of stage 1 and depths of stage 3."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from poa_ds.model.backbone import ElasticBackbone, Streams, enlarge, pooled
from poa_ds.model.layers import ElasticLayerNorm, ElasticLinear, Mlp
from poa_ds.model.options import COLOURS, Backbone
from poa_ds.model.packing import Packing
from poa_ds.model.shape import Stages
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.swin.shape import SwinShape
from poa_ds.model.swin.windows import Maps, WindowAttention
from poa_ds.system.transfer import send
from poa_kernels.compiled import compilable

EPS = 1e-5  # of all norms; source: the published class default


@dataclass(frozen=True)
class SwinPlan:
    """What one block does to each stream. maps: before the block.

    drops: per stream the factor of each image (attention branch, MLP branch), 0 = dropped.
    """

    maps: Maps
    chosen: tuple[bool, ...]
    drops: tuple[tuple[Tensor, Tensor] | None, ...]


class Merge(nn.Module):
    """2 x 2 tokens -> one of twice the channels: norm over all four, linear without bias.

    The norm's channels and the columns of the weight are stored channel by channel, within one
    by position (0,0), (0,1), (1,0), (1,1), so that a narrow stream uses a prefix of them.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(4 * dim, EPS)
        self.reduction = ElasticLinear(4 * dim, 2 * dim, bias=False)

    def forward(self, *streams: Tensor, maps: Maps) -> tuple[Tensor, ...]:
        quads = [self.norm(_corners(x, maps)) for x in streams]
        return self.reduction(*quads, outs=[2 * x.shape[-1] for x in streams])


def _corners(x: Tensor, maps: Maps) -> Tensor:
    """(R, C) -> (rows of the halved maps, 4 C)."""
    merged = []
    for part, (_, rows, columns) in zip(maps.split(x), maps.segments, strict=True):
        grid = rearrange(part, "n (r k) c -> n r k c", r=rows)
        grid = F.pad(grid, (0, 0, 0, columns % 2, 0, rows % 2))
        merged.append(rearrange(grid, "n (r i) (k j) c -> (n r k) (c i j)", i=2, j=2))
    return torch.cat(merged)


def channel_major(corners: Tensor) -> Tensor:
    """Columns (position, channel) -> (channel, position) of a merge's weight or norm (..., 4 C)."""
    return rearrange(corners, "... (position c) -> ... (c position)", position=4).contiguous()


def position_major(corners: Tensor) -> Tensor:
    """The inverse of `channel_major`."""
    return rearrange(corners, "... (c position) -> ... (position c)", position=4).contiguous()


class SwinBlock(nn.Module):
    """A block that all streams pass together; the first one of a stage merges tokens before.

    A stream that does not use the block leaves as a new tensor (see layers.Block).
    """

    def __init__(
        self, dim: int, head_dim: int, window: int, mlp_ratio: int, *, shift: int, merges: bool
    ) -> None:
        super().__init__()
        self.merge = Merge(dim // 2) if merges else None
        self.norm1, self.norm2 = ElasticLayerNorm(dim, EPS), ElasticLayerNorm(dim, EPS)
        self.attn = WindowAttention(dim, head_dim, window, shift)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, *streams: Tensor, plan: SwinPlan) -> tuple[Tensor, ...]:
        maps = plan.maps
        if self.merge is not None:
            streams = self.merge(*streams, maps=maps)
            maps = maps.halved()
        members = [i for i, chosen in enumerate(plan.chosen) if chosen]
        xs, drops = [streams[i] for i in members], [plan.drops[i] for i in members]

        def added(branches: Sequence[Tensor], index: int) -> list[Tensor]:
            factors = [None if drop is None else maps.per_row(drop[index]) for drop in drops]
            return [_added(*x) for x in zip(xs, branches, factors, strict=True)]

        xs = added(self.attn(*map(self.norm1, xs), maps=maps), 0)
        xs = iter(added(self.mlp(*map(self.norm2, xs)), 1))
        return tuple(
            next(xs) if chosen else x * 1 for x, chosen in zip(streams, plan.chosen, strict=True)
        )


@compilable
def _added(x: Tensor, branch: Tensor, factor: Tensor | None) -> Tensor:
    return x + branch if factor is None else torch.addcmul(x, branch, factor.to(branch.dtype))


def _map(tokens: Tensor, maps: Maps) -> Tensor:
    """(n, C, rows, columns) of the tokens of crops of one side."""
    [(n, rows, _)] = maps.segments
    return rearrange(tokens, "(n r k) c -> n c r k", n=n, r=rows)


class Patches(nn.Module):
    """Images -> (n, rows, columns, C), normalised over all channels, whatever the size.

    projected: all of them, of which the first `dim` go on.
    """

    def __init__(self, projected: int, dim: int, patch_size: int, channels: int) -> None:
        super().__init__()
        self.projected = projected
        self.proj = nn.Conv2d(channels, projected, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, images: Tensor) -> Tensor:
        x = rearrange(self.proj(images.to(self.proj.weight.dtype)), "n c r k -> n r k c")
        [width] = self.norm.normalized_shape
        if width == self.projected:
            return self.norm(x)
        x = F.layer_norm(x, (self.projected,), eps=EPS)[..., :width]
        return x * self.norm.weight + self.norm.bias


class Embed(nn.Module):
    """Images -> tokens at full width, masked ones replaced; a narrower stream is a prefix."""

    def __init__(self, projected: int, dim: int, patch_size: int, channels: int) -> None:
        super().__init__()
        self.patch = Patches(projected, dim, patch_size, channels)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))

    def forward(self, images: Tensor, masks: Tensor | None) -> Tensor:
        x = self.patch(images)
        if masks is None:
            return x
        return torch.where(enlarge(masks, *x.shape[1:3]).unsqueeze(-1), self.mask_token, x)


class ElasticSwin(ElasticBackbone):
    """Swin transformers of several widths (of stage 1) and depths (of stage 3).

    The tokens are normalised; class feature = their mean; patch tokens: the last map enlarged
    to twice its side. All linear layers start as PyTorch's do, as published.
    """

    kind = "swin"
    copies = 2
    reads_stages = True

    def __init__(
        self,
        space: ElasticSpace,
        *,
        stages: Stages,
        image_size: int,
        patch_size: int = 4,
        head_dim: int = 16,
        window: int = Backbone.window,
        mlp_ratio: int = Backbone.mlp_ratio,
        channels: int = COLOURS,
        projected: int = 0,
        shifted: tuple[bool, ...] = (),
        activation_checkpointing: bool = False,
    ) -> None:
        dim = space.intact.width
        shape = SwinShape(
            widest=dim,
            stages=stages,
            image_size=image_size,
            patch_size=patch_size,
            head_dim=head_dim,
            window=window,
            mlp_ratio=mlp_ratio,
            channels=channels,
            projected=projected,
            shifted=shifted,
        )
        super().__init__(space, shape, activation_checkpointing=activation_checkpointing)
        self.embed = Embed(shape.normed, dim, patch_size, channels)
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim * 2**stage,
                head_dim,
                window,
                mlp_ratio,
                shift=window // 2 if shifts else 0,
                merges=stage > 0 and block == 0,
            )
            for stage in range(len(stages))
            for block, shifts in enumerate(shape.shifts(stage))
        )
        self.norm = ElasticLayerNorm(8 * dim, EPS)

    @classmethod
    def of(
        cls, options: Backbone, image_size: int, space: ElasticSpace, *, channels: int
    ) -> "ElasticSwin":
        return cls(
            space,
            stages=tuple(most for _, most in options.stages),
            image_size=image_size,
            patch_size=options.patch_size,
            head_dim=options.head_dim,
            window=options.window,
            mlp_ratio=options.mlp_ratio,
            channels=channels,
            projected=options.projected,
            shifted=options.shifted,
            activation_checkpointing=options.activation_checkpointing,
        )

    def enter(
        self, crops: Sequence[Tensor], subnets: Sequence[Subnet], masks: Sequence[Tensor | None]
    ) -> tuple[Streams, Maps]:
        tokens = [self.embed(images, mask) for images, mask in zip(crops, masks, strict=True)]
        rows = torch.cat([rearrange(t, "n r k c -> (n r k) c") for t in tokens])
        maps = Maps(tuple(tuple(t.shape[:3]) for t in tokens))
        return tuple(rows[:, : subnet.width] for subnet in subnets), maps

    def plan(
        self,
        index: int,
        layout: Maps,
        chosen: tuple[bool, ...],
        drops: tuple[tuple[Tensor, Tensor] | None, ...],
    ) -> SwinPlan:
        return SwinPlan(layout, chosen, drops)

    def layout_after(self, block: SwinBlock, layout: Maps) -> Maps:
        return layout if block.merge is None else layout.halved()

    def leave(self, streams: Streams, layout: Maps) -> list[list[Tensor]]:
        return [self._tokens(self.norm.finely(x), layout) for x in streams]

    def _tokens(self, x: Tensor, maps: Maps) -> list[Tensor]:
        cut = zip(maps.split(x), maps.segments, strict=True)
        return [
            pooled(rearrange(part, "n (r k) c -> n r k c", r=rows)) for part, (_, rows, _) in cut
        ]

    def stage_maps(self, images: Tensor, subnet: Subnet) -> list[Tensor]:
        streams, layout = self.enter((images,), (subnet,), (None,))
        found = []
        for index in self.members(subnet):
            block = self.blocks[index]
            if block.merge is not None:
                found.append(_map(streams[0], layout))
            streams = self._run(block, streams, self.plan(index, layout, (True,), (None,)))
            layout = self.layout_after(block, layout)
        return [*found, _map(self.norm.finely(streams[0]), layout)]

    def draw_branches(
        self,
        branches: Sequence[int],
        packing: Packing,
        rate: float,
        generator: torch.Generator,
        device: torch.device | str,
    ) -> Iterable[Tensor]:
        """Per image: kept with a probability that falls to 1 - rate at the last block.

        A kept branch is scaled by the inverse of that probability (docs/method.md 2).
        """
        images, last = sum(n for n, _ in packing.segments), max(len(self.blocks) - 1, 1)
        keep = torch.tensor([1 - rate * index / last for index in branches]).unsqueeze(1)
        draws = torch.rand(len(branches), images, generator=generator)
        return send((draws < keep).float() / keep, device)

    def packing(self, crops: Sequence[Tensor]) -> Packing:
        return Packing(
            tuple((len(images), (images.shape[-1] // self.patch_size) ** 2) for images in crops)
        )


NETWORK = ElasticSwin
