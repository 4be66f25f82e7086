"""Leading rows and columns of a weight: their factor alpha, and their products by PyTorch's own."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def alpha(whole: int, active: int, exponent: float = 1.0) -> float:
    """The factor of an input of which `active` of the `whole` channels are there (POA 3.2).

    exponent: 1 as published, which keeps the size of a sum over fewer equal terms; 0.5 keeps it
    for independent terms; 0 scales nothing.
    """
    return (whole / active) ** exponent


def leading(parameter: Tensor, count: int) -> Tensor:
    """The first elements; the parameter itself where that is all, which costs no backward."""
    return parameter if len(parameter) == count else parameter[:count]


def leading_of_all(parameters: Sequence[Tensor], counts: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Per count the first elements of each vector; all vectors are of the same length.

    Their gradients are added up in one operation, where autograd fills and adds one at a time. So
    they come at the same moment of a backward pass however many counts there are: ranks whose
    blocks have other numbers of streams send their gradients in one order (ZeRO 2 sums by order).
    """
    whole = len(parameters[0])
    if whole not in counts:
        return [tuple(leading(p, count) for p in parameters) for count in counts]
    found = _Leading.apply(tuple(counts), *parameters)
    return [found[i : i + len(parameters)] for i in range(0, len(found), len(parameters))]


class _Leading(torch.autograd.Function):
    @staticmethod
    def forward(ctx, counts, *parameters):
        ctx.counts = counts
        return tuple(p[:count] for count in counts for p in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        n = len(gradients) // len(ctx.counts)
        by_count = [gradients[i : i + n] for i in range(0, len(gradients), n)]
        whole = by_count.pop(ctx.counts.index(max(ctx.counts)))
        if not by_count:
            return None, *whole
        totals = torch._foreach_mul(whole, 1.0)  # the gradients themselves are not ours
        for others in by_count:
            parts = [t[: len(g)] for t, g in zip(totals, others, strict=True)]
            torch._foreach_add_(parts, others)
        return None, *totals


def rows_of_all(matrices: Sequence[Tensor], rows: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Per row number that row of each matrix; gradients at one moment, as of `leading_of_all`."""
    found = _Rows.apply(tuple(rows), *matrices)
    return [found[i : i + len(matrices)] for i in range(0, len(found), len(matrices))]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, *matrices):
        ctx.rows, ctx.shapes = rows, [m.shape for m in matrices]
        return tuple(m[row] for row in rows for m in matrices)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        n = len(ctx.shapes)
        totals = [g.new_zeros(s) for g, s in zip(gradients[:n], ctx.shapes, strict=True)]
        for place, row in enumerate(ctx.rows):
            of_stream = gradients[n * place : n * place + n]
            torch._foreach_add_([total[row] for total in totals], list(of_stream))
        return None, *totals


def wide(x: Tensor) -> Tensor:
    """x in float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def two(items: Sequence) -> tuple:
    """A lone stream stands in for the second one, whose rows the kernel is told not to visit."""
    return (*items, *items)[:2]


def forward(streams, weight, bias, outs, exponent=1.0) -> tuple[Tensor, ...]:
    """As in two_stream_linear, for any number of streams."""
    return tuple(
        _one(x, weight[:out, : x.shape[1]], bias, alpha(weight.shape[1], x.shape[1], exponent))
        for x, out in zip(streams, outs, strict=True)
    )


def _one(x: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    bias = None if bias is None else bias[: len(weight)]
    if scale == 1:
        return F.linear(x, weight, bias)
    # alpha carries the scale: no pass of its own; what beta = 0 meets is not read
    first, beta = (x.new_empty(1), 0) if bias is None else (bias, 1)
    return torch.addmm(first, x, weight.t(), beta=beta, alpha=scale)


def of_input(gradients, weight, widths, exponent=1.0) -> list[Tensor]:
    inputs = []
    for g, width in zip(gradients, widths, strict=True):
        x = g.new_empty(len(g), width)
        scale = alpha(weight.shape[1], width, exponent)
        inputs.append(torch.addmm(x, g, weight[: g.shape[1], :width], beta=0, alpha=scale, out=x))
    return inputs


def of_weight(gradients, streams, weight, exponent=1.0) -> Tensor:
    """The first stream that covers the weight writes all of it; the other adds to its corner."""
    pairs = list(zip(gradients, streams, strict=True))
    whole = [g.shape[1] == weight.shape[0] and x.shape[1] == weight.shape[1] for g, x in pairs]
    if any(whole):
        g, x = pairs.pop(whole.index(True))
        total = g.t() @ x
    else:
        total = torch.zeros_like(weight)
    for g, x in pairs:
        corner = total[: g.shape[1], : x.shape[1]]
        corner.addmm_(g.t(), x, alpha=alpha(weight.shape[1], x.shape[1], exponent))
    return total
