"""Self-attention of packed sequences straight from the packed qkv rows, for short sequences.

One program holds all keys and values of one head of one sequence: no running softmax, nothing
saved but qkv, and one gradient that is packed like qkv. Longer sequences go to PyTorch's SDPA.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from poa_kernels import dispatch
from poa_kernels.language import Case, dot, jit, power_of_two, precision, tl

OPERATOR = "attention"
LONGEST = 64  # tokens of a short sequence: a tile; longer ones spill registers in backward
LOG2_E = tl.constexpr(1.4426950408889634)


def attention(qkv: Tensor, segments: Sequence[tuple[int, int]], head_dim: int) -> Tensor:
    """(R, C) from qkv (R, 3 C), whose channels are head by head (head, q|k|v, channel).

    segments: (sequences, tokens of each), in the order of the rows.
    """
    assert qkv.shape[1] % (3 * head_dim) == 0
    assert sum(n * tokens for n, tokens in segments) == len(qkv)
    if not any(_is_short(qkv, tokens, head_dim) for _, tokens in segments):
        return reference(qkv, segments, head_dim)
    parts = qkv.split([n * tokens for n, tokens in segments])
    outputs = [
        _ShortAttention.apply(part, segment[1], head_dim)
        if _is_short(qkv, segment[1], head_dim)
        else reference(part, [segment], head_dim)
        for part, segment in zip(parts, segments, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _is_short(qkv: Tensor, tokens: int, head_dim: int) -> bool:
    fits = tokens <= LONGEST and head_dim in (16, 32, 64, 128)
    return fits and dispatch.choose(OPERATOR, qkv) == "triton"


def reference(qkv: Tensor, segments: Sequence[tuple[int, int]], head_dim: int) -> Tensor:
    """The same by PyTorch's SDPA, one call per length."""
    parts = _Unpacked.apply(qkv, tuple(segments), head_dim)
    mixed = (F.scaled_dot_product_attention(*parts[i : i + 3]) for i in range(0, len(parts), 3))
    return _Joined.apply(*mixed)


class _Unpacked(torch.autograd.Function):
    """q, k, v (n, heads, tokens, D) of every segment: views. Their gradients are copied once."""

    @staticmethod
    def forward(ctx, qkv, segments, head_dim):
        ctx.segments, ctx.head_dim = segments, head_dim
        return tuple(view for part in _heads(qkv, segments, 3, head_dim) for view in part)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        rows = sum(n * tokens for n, tokens in ctx.segments)
        of_qkv = gradients[0].new_empty(rows, 3 * gradients[0].shape[1] * ctx.head_dim)
        views = (v for part in _heads(of_qkv, ctx.segments, 3, ctx.head_dim) for v in part)
        for view, gradient in zip(views, gradients, strict=True):
            view.copy_(gradient)
        return of_qkv, None, None


class _Joined(torch.autograd.Function):
    """(R, C) from each segment's (n, heads, tokens, D), copied at most once."""

    @staticmethod
    def forward(ctx, *mixed):
        segments = [(len(m), m.shape[2]) for m in mixed]
        ctx.segments, (heads, ctx.head_dim) = segments, (mixed[0].shape[1], mixed[0].shape[3])
        if len(mixed) == 1:  # SDPA's result has the order of the rows
            return mixed[0].transpose(1, 2).reshape(-1, heads * ctx.head_dim)
        out = mixed[0].new_empty(sum(n * t for n, t in segments), heads * ctx.head_dim)
        for (view,), m in zip(_heads(out, segments, 1, ctx.head_dim), mixed, strict=True):
            view.copy_(m)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return tuple(view for (view,) in _heads(gradient, ctx.segments, 1, ctx.head_dim))


def _heads(
    rows: Tensor, segments: Sequence[tuple[int, int]], parts: int, head_dim: int
) -> Iterator[Tensor]:
    """Views (parts, n, heads, tokens, D) of rows (R, heads x parts x D), one per segment."""
    heads = rows.shape[1] // (parts * head_dim)
    pieces = rows.split([n * tokens for n, tokens in segments])
    for piece, (n, tokens) in zip(pieces, segments, strict=True):
        yield piece.view(n, tokens, heads, parts, head_dim).permute(3, 0, 2, 1, 4)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, tokens, head_dim):
        qkv = qkv.contiguous()
        ctx.save_for_backward(qkv)
        ctx.tokens, ctx.head_dim = tokens, head_dim
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        _launch(_forward, "forward", tokens, head_dim, qkv, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (qkv,) = ctx.saved_tensors
        of_qkv = torch.empty_like(qkv)
        _launch(_backward, "backward", ctx.tokens, ctx.head_dim, qkv, gradient.contiguous(), of_qkv)
        return of_qkv, None, None


def _launch(kernel, kind: str, tokens: int, head_dim: int, qkv: Tensor, *others: Tensor) -> None:
    heads = qkv.shape[1] // (3 * head_dim)
    programs, tile = len(qkv) // tokens * heads, dispatch.tiles(f"{OPERATOR}.{kind}", qkv)
    if qkv.dtype == torch.float32:  # no tensor cores: larger blocks spill, and compile for 24 s
        tile["BM"] = min(tile["BM"], 16)
    if programs:
        kernel[(programs,)](
            qkv, *others, tokens, heads, head_dim**-0.5,
            D=head_dim, BN=max(16, power_of_two(tokens)), PRECISION=precision(qkv), **tile,
        )  # fmt: skip


@jit
def _probabilities(q, k, tokens, scale, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr):
    """(BM, BN): the softmax over the keys of the sequence."""
    s = dot(q, tl.trans(k), tl.zeros((BM, BN), tl.float32), P) * (scale * LOG2_E)
    s = tl.where((tl.arange(0, BN) < tokens)[None, :], s, -1e38)
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@jit
def _forward(
    qkv, out, tokens, heads, scale,
    D: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, sequence = tl.program_id(0) % heads, tl.program_id(0) // heads
    first = sequence.to(tl.int64) * tokens
    c, n = tl.arange(0, D), tl.arange(0, BN)
    stride = 3 * heads * D
    start = qkv + first * stride + head * 3 * D
    at = n[:, None] * stride + c[None, :]
    k = tl.load(start + D + at, mask=(n < tokens)[:, None], other=0.0)
    v = tl.load(start + 2 * D + at, mask=(n < tokens)[:, None], other=0.0)
    for m0 in range(0, tokens, BM):
        m = m0 + tl.arange(0, BM)
        mask = (m < tokens)[:, None]
        q = tl.load(start + m[:, None] * stride + c[None, :], mask=mask, other=0.0)
        p = _probabilities(q, k, tokens, scale, BM, BN, PRECISION)
        o = dot(p.to(v.dtype), v, tl.zeros((BM, D), tl.float32), PRECISION)
        to = out + (first + m[:, None]) * (heads * D) + head * D + c[None, :]
        tl.store(to, o.to(out.dtype.element_ty), mask=mask)


@jit
def _backward(
    qkv, gradient, of_qkv, tokens, heads, scale,
    D: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, sequence = tl.program_id(0) % heads, tl.program_id(0) // heads
    first = sequence.to(tl.int64) * tokens
    c, n = tl.arange(0, D), tl.arange(0, BN)
    stride = 3 * heads * D
    start = first * stride + head * 3 * D
    at = start + n[:, None] * stride + c[None, :]
    inside = (n < tokens)[:, None]
    k = tl.load(qkv + D + at, mask=inside, other=0.0)
    v = tl.load(qkv + 2 * D + at, mask=inside, other=0.0)
    dk, dv = tl.zeros((BN, D), tl.float32), tl.zeros((BN, D), tl.float32)
    for m0 in range(0, tokens, BM):
        m = m0 + tl.arange(0, BM)
        mask = (m < tokens)[:, None]
        row = start + m[:, None] * stride + c[None, :]
        q = tl.load(qkv + row, mask=mask, other=0.0)
        do = gradient + (first + m[:, None]) * (heads * D) + head * D + c[None, :]
        do = tl.load(do, mask=mask, other=0.0)
        p = _probabilities(q, k, tokens, scale, BM, BN, PRECISION)
        dp = dot(do, tl.trans(v), tl.zeros((BM, BN), tl.float32), PRECISION)
        ds = p * (dp - tl.sum(p * dp, 1)[:, None]) * scale
        dv = dot(tl.trans(p.to(do.dtype)), do, dv, PRECISION)
        dk = dot(tl.trans(ds.to(q.dtype)), q, dk, PRECISION)
        dq = dot(ds.to(k.dtype), k, tl.zeros((BM, D), tl.float32), PRECISION)
        tl.store(of_qkv + row, dq.to(of_qkv.dtype.element_ty), mask=mask)
    tl.store(of_qkv + D + at, dk.to(of_qkv.dtype.element_ty), mask=inside)
    tl.store(of_qkv + 2 * D + at, dv.to(of_qkv.dtype.element_ty), mask=inside)


def cases(chip: str) -> Iterator[Case]:
    """Every kernel with the chip's tiles, for aot.py: the 37 tokens of a local crop."""
    types = dict.fromkeys(("qkv", "out", "gradient", "of_qkv"), "*bf16") | {"scale": "fp32"}
    types |= dict.fromkeys(("tokens", "heads"), "i32")
    for kind, kernel in {"forward": _forward, "backward": _backward}.items():
        tile = dict(dispatch.entry(chip, f"{OPERATOR}.{kind}")["tiles"])
        warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
        constants = {"D": 64, "BN": LONGEST, "PRECISION": "tf32"} | tile
        yield Case(f"{OPERATOR}.{kind}", kernel, types, constants, warps, stages, products=True)
