"""Windows of a map: how its tokens are cut into them, shifted or not, and attention inside."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from poa_ds.model.layers import ElasticLinear
from poa_ds.system.transfer import send
from poa_kernels.rows import gather_rows
from poa_kernels.slices import leading

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
