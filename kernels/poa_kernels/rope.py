"""Rotary positions (RoPE): queries and keys in packed qkv rows, turned by the place of their token.

A rotation's gradient is turned back by the same angles, so that nothing is saved but their tables.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from poa_kernels import dispatch
from poa_kernels.language import Case, blocks, jit, tl
from poa_kernels.slices import wide

OPERATOR = "rope"


def rotate(
    qkv: Tensor, segments: Sequence[tuple[int, int]], head_dim: int, angles: Sequence[Tensor]
) -> Tensor:
    """qkv (R, 3 C) with its q and k turned; channels are head by head (head, q|k|v, channel).

    segments: (sequences, tokens of each), in the order of the rows. angles: of each segment
    (2, N, head_dim / 2), cosines and sines of the last N tokens of every sequence; those before
    stay. Channel c of a head turns with channel c + head_dim / 2, in the type of the angles.
    """
    assert qkv.shape[1] % (3 * head_dim) == 0 and head_dim % 2 == 0
    assert sum(n * tokens for n, tokens in segments) == len(qkv)
    for (_, tokens), table in zip(segments, angles, strict=True):
        assert table.shape[0] == 2 and table.shape[1] <= tokens and table.shape[2] * 2 == head_dim
    fits = head_dim in (16, 32, 64, 128) and dispatch.choose(OPERATOR, qkv) == "triton"
    return _Rotated.apply(qkv, tuple(segments), head_dim, _launch if fits else reference, *angles)


def reference(
    qkv: Tensor, segments: Sequence[tuple[int, int]], head_dim: int, angles: Sequence[Tensor]
) -> Tensor:
    """The same in PyTorch's own operations."""
    out, first, heads = qkv.clone(), 0, qkv.shape[1] // (3 * head_dim)
    for (n, tokens), table in zip(segments, angles, strict=True):
        rows = slice(first, first := first + n * tokens)
        cos, sin = table[:, :, None, None]  # (N, 1, 1, D / 2)
        shape = (n, tokens, heads, 3, 2, head_dim // 2)
        turns = (slice(None), slice(tokens - table.shape[1], None), slice(None), slice(0, 2))
        a, b = (wide(half) for half in qkv[rows].view(shape)[turns].unbind(4))
        x, y = out[rows].view(shape)[turns].unbind(4)
        x.copy_(a * cos - b * sin)
        y.copy_(b * cos + a * sin)
    return out


class _Rotated(torch.autograd.Function):
    """way: `reference` or `_launch`, in both directions."""

    @staticmethod
    def forward(ctx, qkv, segments, head_dim, way: Callable[..., Tensor], *angles):
        ctx.save_for_backward(*angles)
        ctx.rest = segments, head_dim, way
        return way(qkv.contiguous(), segments, head_dim, angles)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        segments, head_dim, way = ctx.rest
        back = [torch.stack((cos, -sin)) for cos, sin in ctx.saved_tensors]
        of_qkv = way(gradient.contiguous(), segments, head_dim, back)
        return of_qkv, None, None, None, *[None] * len(back)


def _launch(
    qkv: Tensor, segments: Sequence[tuple[int, int]], head_dim: int, angles: Sequence[Tensor]
) -> Tensor:
    out, first, heads = torch.empty_like(qkv), 0, qkv.shape[1] // (3 * head_dim)
    tile = dispatch.tiles(OPERATOR, qkv)
    for (n, tokens), table in zip(segments, angles, strict=True):
        rows = n * tokens
        if rows:
            _rotate[blocks(rows, tile["BM"]), 3 * heads](
                qkv[first:], out[first:], table.contiguous(), rows, tokens,
                tokens - table.shape[1], heads, H=head_dim // 2, **tile,
            )  # fmt: skip
        first += rows
    return out


@jit
def _rotate(
    qkv, out, angles, rows, tokens, first, heads, H: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """One of q, k, v of one head in BM rows; v is copied."""
    m, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, H)
    part = tl.program_id(1)
    inside = (m < rows)[:, None]
    place = tl.where(part % 3 == 2, -1, m % tokens - first)
    turns = inside & (place >= 0)[:, None]
    table = angles + place[:, None] * H + c[None, :]
    cos = tl.load(table, mask=turns, other=1.0)
    sin = tl.load(table + (tokens - first) * H, mask=turns, other=0.0)
    at = m.to(tl.int64)[:, None] * (6 * heads * H) + part * 2 * H + c[None, :]
    a = tl.load(qkv + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(qkv + at + H, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (a * cos - b * sin).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + H, (b * cos + a * sin).to(out.dtype.element_ty), mask=inside)


def cases(chip: str) -> Iterator[Case]:
    """The kernel with the chip's tiles, for aot.py."""
    types = dict.fromkeys(("qkv", "out"), "*bf16") | {"angles": "*fp32"}
    types |= dict.fromkeys(("rows", "tokens", "first", "heads"), "i32")
    tile = dict(dispatch.entry(chip, OPERATOR)["tiles"])
    warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
    yield Case(OPERATOR, _rotate, types, {"H": 32} | tile, warps, stages)
