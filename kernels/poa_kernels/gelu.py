"""GELU whose backward pass also sums up the bias gradient of the linear layer before it.

The exact GELU (erf). The forward pass is PyTorch's own; backward reads the layer's output and the
gradient once, where PyTorch reads the result a second time for the bias.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from poa_kernels import dispatch
from poa_kernels.compiled import compilable
from poa_kernels.language import Case, blocks, jit, tl

OPERATOR = "gelu"
PROGRAMS = 64  # along the rows; each has its own sums


def gelu(h: Tensor, bias: Tensor | None = None) -> Tensor:
    """gelu(h) for h (R, F).

    bias (at least F,): the parameter that is already inside h = product + bias[:F]. Its gradient
    comes from here, so the layer must have taken it detached.
    """
    assert h.dim() == 2 and (bias is None or len(bias) >= h.shape[1])
    if dispatch.choose(OPERATOR, h) == "reference":
        return _plain(h, bias)
    return _Gelu.apply(h, bias)


@compilable
def _plain(h: Tensor, bias: Tensor | None) -> Tensor:
    """Reference."""
    return F.gelu(h if bias is None else _Tap.apply(h, bias))


class _Tap(torch.autograd.Function):
    """h itself; hands the column sums of its gradient to a bias that is already inside."""

    @staticmethod
    def forward(ctx, h, bias):
        ctx.width = len(bias)
        return h.view_as(h)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        sums = gradient.sum(0)
        missing = ctx.width - len(sums)
        return gradient, F.pad(sums, (0, missing)) if missing else sums


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, bias):
        ctx.save_for_backward(h)
        ctx.bias = None if bias is None else (len(bias), bias.dtype)
        return F.gelu(h)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (h,) = ctx.saved_tensors
        of_h, sums = _backward_pass(h.contiguous(), gradient.contiguous())
        if ctx.bias is None:
            return of_h, None
        width, dtype = ctx.bias
        return of_h, F.pad(sums, (0, width - len(sums))).to(dtype)


def _backward_pass(h: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of h, its column sums in float32)."""
    tile, (rows, width) = dispatch.tiles(OPERATOR, h), h.shape
    share = blocks(blocks(rows, PROGRAMS), tile["BM"]) * tile["BM"]
    programs = blocks(rows, share) if rows else 0
    of_h = torch.empty_like(h)
    partial = h.new_empty(programs, width, dtype=torch.float32)
    if programs:
        grid = (programs, blocks(width, tile["BC"]))
        _backward[grid](h, gradient, of_h, partial, rows, width, share, **tile)
    return of_h, partial.sum(0)


@jit
def _backward(
    h, gradient, of_h, partial, rows, width, share, BM: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros((BC,), tl.float32)
    first = tl.program_id(0) * share
    last = min(first + share, rows)
    for m0 in range(first, last, BM):
        m = m0 + tl.arange(0, BM)
        mask = (m < last)[:, None] & (c < width)[None, :]
        at = m.to(tl.int64)[:, None] * width + c[None, :]
        x = tl.load(h + at, mask=mask, other=0.0).to(tl.float32)
        # Phi(x) + x phi(x): 1 / sqrt(2), 1 / sqrt(2 pi)
        slope = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        slope += x * tl.exp(-0.5 * x * x) * 0.3989422804014327
        g = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32) * slope
        tl.store(of_h + at, g.to(of_h.dtype.element_ty), mask=mask)
        total += tl.sum(g, 0)
    tl.store(partial + tl.program_id(0) * width + c, total, mask=c < width)


def cases(chip: str) -> Iterator[Case]:
    """Every kernel with the chip's tiles, for aot.py."""
    types = dict.fromkeys(("h", "gradient", "of_h"), "*bf16") | {"partial": "*fp32"}
    types |= dict.fromkeys(("rows", "width", "share"), "i32")
    tile = dict(dispatch.entry(chip, OPERATOR)["tiles"])
    warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
    yield Case(f"{OPERATOR}.backward", _backward, types, tile, warps, stages, ("width",))
