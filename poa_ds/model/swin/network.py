"""The elastic Swin transformer: windows of a map, four stages, widths and stage-3 depths."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from poa_ds.model.backbone import ElasticBackbone, Streams, enlarge, pooled
from poa_ds.model.layers import ElasticLayerNorm, ElasticLinear, Mlp, Packing
from poa_ds.model.options import Backbone
from poa_ds.model.shape import Stages
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.swin.shape import SwinShape
from poa_ds.system.transfer import send
from poa_kernels.add_ln import gather_rows, leading

EPS = 1e-5  # of all norms; source: the published class default
APART = -100.0  # added to the logits of tokens that the shift brought together; published


@dataclass(frozen=True)
class Maps:
    """How the rows of a stream are cut: segments of (images, rows, columns)."""

    segments: tuple[tuple[int, int, int], ...]

    def split(self, rows: Tensor) -> list[Tensor]:
        """(R, C) -> one (images, rows x columns, C) view per segment."""
        pieces = rows.split([n * r * c for n, r, c in self.segments])
        return [p.unflatten(0, (n, -1)) for p, (n, *_) in zip(pieces, self.segments, strict=True)]

    def halved(self) -> "Maps":
        """The maps after a merge of 2 x 2 tokens."""
        return Maps(tuple((n, -(-r // 2), -(-c // 2)) for n, r, c in self.segments))

    def per_row(self, per_image: Tensor) -> Tensor:
        """(images,) -> (R, 1): each image's number at each of its tokens."""
        pieces = per_image.split([n for n, _, _ in self.segments])
        repeated = [
            p.repeat_interleave(r * c, output_size=n * r * c)
            for p, (n, r, c) in zip(pieces, self.segments, strict=True)
        ]
        return torch.cat(repeated).unsqueeze(1)


@dataclass(frozen=True)
class SwinPlan:
    """What one block does to each stream. maps: before the block.

    drops: per stream the factor of each image (attention branch, MLP branch), 0 = dropped.
    """

    maps: Maps
    chosen: tuple[bool, ...]
    drops: tuple[tuple[Tensor, Tensor] | None, ...]


@dataclass(frozen=True)
class Windows:
    """The windows of one size of map.

    gather (windows, places): the token at each place, behind all tokens the padding, row by row.
    back: the place of each token. apart (windows, places, places): pairs that are no neighbours,
    None = no shift. padding: how many rows of it there are.
    """

    gather: Tensor
    back: Tensor
    apart: Tensor | None
    padding: int


@lru_cache(maxsize=256)
def windows(rows: int, columns: int, window: int, shift: int, device: torch.device) -> Windows:
    """The windows of a map, which is padded to a multiple of `window` and rolled by `shift`."""
    with torch.inference_mode(False):  # kept for training, whoever asks first
        high, wide = (-(-side // window) * window for side in (rows, columns))
        tokens = torch.full((high, wide), -1)
        tokens[:rows, :columns] = torch.arange(rows * columns).view(rows, columns)
        tokens[tokens < 0] = torch.arange(rows * columns, high * wide)
        region = torch.zeros(high, wide, dtype=torch.long)
        for part, (low, stop) in enumerate([(-window, -shift), (-shift, None)] if shift else []):
            region[low:stop] += 3 * (part + 1)
            region[:, low:stop] += part + 1

        def cut(grid: Tensor) -> Tensor:
            return rearrange(grid, "(r i) (k j) -> (r k) (i j)", i=window, j=window)

        gather, regions = cut(tokens.roll((-shift, -shift), (0, 1))), cut(region)
        apart = regions.unsqueeze(1) != regions.unsqueeze(2) if shift else None
        back = gather.flatten().argsort()[: rows * columns]
        return Windows(
            send(gather, device),
            send(back, device),
            None if apart is None else send(apart, device),
            high * wide - rows * columns,
        )


@lru_cache(maxsize=16)
def relative_positions(window: int, device: torch.device) -> Tensor:
    """(places^2,): the row of the bias table for each pair of places in a window."""
    with torch.inference_mode(False):
        at = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = at.unsqueeze(1) - at.unsqueeze(0) + window - 1
        return send((apart[..., 0] * (2 * window - 1) + apart[..., 1]).flatten(), device)


class WindowAttention(nn.Module):
    """Self-attention of the first width / head_dim heads inside windows; qkv as in layers.py.

    Padding takes part: its qkv is the bias, because the padded rows are zero.
    """

    def __init__(self, dim: int, head_dim: int, window: int, shift: int) -> None:
        super().__init__()
        self.head_dim, self.window, self.shift = head_dim, window, shift
        self.qkv = ElasticLinear(dim, 3 * dim)
        self.proj = ElasticLinear(dim, dim)
        # starts at zero and is decayed, as published
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, dim // head_dim))

    def forward(self, *streams: Tensor, maps: Maps) -> tuple[Tensor, ...]:
        widths = [x.shape[-1] for x in streams]
        packed = self.qkv(*streams, outs=[3 * width for width in widths])
        return self.proj(*[self._attend(qkv, maps) for qkv in packed], outs=widths)

    def _attend(self, qkv: Tensor, maps: Maps) -> Tensor:
        """(R, 3 width) -> (R, width)."""
        heads, places = qkv.shape[-1] // (3 * self.head_dim), self.window**2
        bias = self.position_bias[:, :heads][relative_positions(self.window, qkv.device)]
        bias = rearrange(bias, "(p q) heads -> heads p q", p=places)
        mixed = [
            self._in_windows(part, bias, windows(r, c, self.window, self.shift, qkv.device))
            for part, (_, r, c) in zip(maps.split(qkv), maps.segments, strict=True)
        ]
        return torch.cat(mixed)

    def _in_windows(self, qkv: Tensor, bias: Tensor, layout: Windows) -> Tensor:
        """(n, tokens, 3 width) -> (n * tokens, width)."""
        if layout.padding:
            padding = leading(self.qkv.bias, qkv.shape[-1]).expand(len(qkv), layout.padding, -1)
            qkv = torch.cat((qkv, padding.to(qkv.dtype)), dim=1)
        count, _ = layout.gather.shape
        placed = gather_rows(qkv, layout.gather.flatten(), 1)
        # windows ride with the heads, so that one mask without a copy per image serves all
        to_heads = "n (windows places) (heads three d) -> three n (windows heads) places d"
        q, k, v = rearrange(placed, to_heads, windows=count, three=3, d=self.head_dim)
        mask = bias.to(q.dtype).expand(count, -1, -1, -1)
        if layout.apart is not None:
            mask = mask + APART * layout.apart.unsqueeze(1).to(q.dtype)
        mask = mask.flatten(0, 1).expand(len(q), -1, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        from_heads = "n (windows heads) places d -> n (windows places) (heads d)"
        out = gather_rows(rearrange(out, from_heads, windows=count), layout.back, 1)
        return rearrange(out, "n tokens c -> (n tokens) c")


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


def _added(x: Tensor, branch: Tensor, factor: Tensor | None) -> Tensor:
    return x + branch if factor is None else torch.addcmul(x, branch, factor.to(branch.dtype))


class Patches(nn.Module):
    """Images -> (n, rows, columns, C), normalised over all channels, whatever the size."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, images: Tensor) -> Tensor:
        projected = self.proj(images.to(self.proj.weight.dtype))
        return self.norm(rearrange(projected, "n c r k -> n r k c"))


class Embed(nn.Module):
    """Images -> tokens at full width, masked ones replaced; a narrower stream is a prefix."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch = Patches(dim, patch_size)
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

    def __init__(
        self,
        space: ElasticSpace,
        *,
        stages: Stages,
        image_size: int,
        patch_size: int = 4,
        head_dim: int = 16,
        window: int = 7,
        mlp_ratio: int = 4,
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
        )
        super().__init__(space, shape, activation_checkpointing=activation_checkpointing)
        self.embed = Embed(dim, patch_size)
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim * 2**stage,
                head_dim,
                window,
                mlp_ratio,
                shift=window // 2 if block % 2 else 0,
                merges=stage > 0 and block == 0,
            )
            for stage, depth in enumerate(stages)
            for block in range(depth)
        )
        self.norm = ElasticLayerNorm(8 * dim, EPS)

    @classmethod
    def of(cls, options: Backbone, image_size: int, space: ElasticSpace) -> "ElasticSwin":
        return cls(
            space,
            stages=tuple(most for _, most in options.stages),
            image_size=image_size,
            patch_size=options.patch_size,
            head_dim=options.head_dim,
            window=options.window,
            mlp_ratio=options.mlp_ratio,
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
        return [self._tokens(self.norm(x), layout) for x in streams]

    def _tokens(self, x: Tensor, maps: Maps) -> list[Tensor]:
        cut = zip(maps.split(x), maps.segments, strict=True)
        return [
            pooled(rearrange(part, "n (r k) c -> n r k c", r=rows)) for part, (_, rows, _) in cut
        ]

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
