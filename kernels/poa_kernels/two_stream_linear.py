"""A linear layer whose weight serves one or two streams, each with its leading rows and columns.

    y_s = alpha * x_s @ weight[:out_s, :in_s].T + bias[:out_s]

with alpha = (in_features / in_s) ** exponent, where 1 is published.

One autograd.Function over both streams saves the Parameter itself, not a view of it (ZeRO-3 can
free the gathered weight until backward), and returns one gradient of full size per parameter.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from poa_kernels import dispatch, slices, two_stream_descriptors
from poa_kernels.language import Case, blocks, dot, jit, precision, tl
from poa_kernels.slices import alpha, two

OPERATOR = "two_stream_linear"


def two_stream_linear(
    streams: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    outs: Sequence[int],
    exponent: float = 1.0,
) -> tuple[Tensor, ...]:
    """One (R_s, out_s) per stream (R_s, in_s), one or two; weight (out_features, in_features).

    Widths are arguments of the kernels: a new size compiles nothing. In autocast as F.linear.
    """
    assert 1 <= len(streams) == len(outs) <= 2
    if torch.is_autocast_enabled(weight.device.type):
        low = torch.get_autocast_dtype(weight.device.type)
        streams, weight = [x.to(low) for x in streams], weight.to(low)
        bias = None if bias is None else bias.to(low)
    for x, out in zip(streams, outs, strict=True):
        assert x.dim() == 2 and x.shape[1] <= weight.shape[1] and out <= weight.shape[0]
        assert x.dtype == weight.dtype and x.device == weight.device
    if _chosen("forward", weight) == "reference":
        return reference(streams, weight, bias, outs, exponent)
    return _TwoStreamLinear.apply(weight, bias, tuple(outs), exponent, *streams)


def reference(
    streams: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    outs: Sequence[int],
    exponent: float = 1.0,
) -> tuple[Tensor, ...]:
    """The same by plain slicing: autograd fills a full-size gradient for every slice."""
    return tuple(
        F.linear(
            x * alpha(weight.shape[1], x.shape[1], exponent),
            weight[:out, : x.shape[1]],
            None if bias is None else bias[:out],
        )
        for x, out in zip(streams, outs, strict=True)
    )


def shape_class(weight: Tensor) -> str:
    """The class of a layer in the table: qkv "3x1", proj "1x1", fc1 "4x1", fc2 "1x4"."""
    rows, columns = weight.shape
    return f"{max(rows // columns, 1)}x{max(columns // rows, 1)}"


class _TwoStreamLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, bias, outs, exponent, *streams):
        ctx.save_for_backward(weight, *streams)
        ctx.has_bias, ctx.exponent = bias is not None, exponent
        return _product("forward", weight)(streams, weight, bias, outs, exponent)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        weight, *streams = ctx.saved_tensors
        needs_weight, needs_bias, _, _, *needs_streams = ctx.needs_input_grad
        gradients = [g.contiguous() for g in gradients]
        inputs = [None] * len(streams)
        if any(needs_streams):
            widths = [x.shape[1] for x in streams]
            inputs = _product("input", weight)(gradients, weight, widths, ctx.exponent)
        of_weight = of_bias = None
        if needs_weight:
            of_weight = _product("weight", weight)(gradients, streams, weight, ctx.exponent)
        if ctx.has_bias and needs_bias:
            of_bias = column_sums(gradients, weight.shape[0])
        return of_weight, of_bias, None, None, *inputs


def column_sums(streams: Sequence[Tensor], width: int) -> Tensor:
    """(width,): the sums of every stream's columns; a narrow stream adds to the leading ones."""
    first, *others = sorted((g.sum(0) for g in streams), key=len, reverse=True)
    total = first if len(first) == width else F.pad(first, (0, width - len(first)))
    for other in others:
        total[: len(other)].add_(other)  # without a second write, which `+=` would be
    return total


def _product(kind: str, weight: Tensor):
    """The implementation of one of the three products: "forward", "input", "weight"."""
    found = _chosen(kind, weight)
    return PRODUCTS[kind, "library" if found == "reference" else found]


def _chosen(kind: str, weight: Tensor) -> str:
    shape = shape_class(weight)
    return dispatch.choose(f"{OPERATOR}.{kind}", weight, shape=shape, otherwise="library")


@jit
def _place(pid, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Tile coordinates in an order that keeps neighbours in the L2 cache."""
    group = pid // (GROUP * tiles_n)
    first = group * GROUP
    size = min(tiles_m - first, GROUP)
    return first + (pid % (GROUP * tiles_n)) % size, (pid % (GROUP * tiles_n)) // size


@jit
def _forward(
    x0, x1, w, b, y0, y1, rows0, rows1, in0, in1, out0, out1, ld0, ld1, ldw, scale0, scale1, tiles0,
    HAS_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    x, y, rows, width, out, ld, scale = x0, y0, rows0, in0, out0, ld0, scale0
    if pid >= tiles0:
        x, y, rows, width, out, ld, scale = x1, y1, rows1, in1, out1, ld1, scale1
        pid -= tiles0
    pm, pn = _place(pid, tl.cdiv(rows, BM), tl.cdiv(out, BN), GROUP)
    m, n, k = pm * BM + tl.arange(0, BM), pn * BN + tl.arange(0, BN), tl.arange(0, BK)
    xp = x + m.to(tl.int64)[:, None] * ld + k[None, :]
    wp = w + n.to(tl.int64)[None, :] * ldw + k[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, width, BK):
        left = width - k0
        xs = tl.load(xp, mask=(m < rows)[:, None] & (k < left)[None, :], other=0.0)
        ws = tl.load(wp, mask=(n < out)[None, :] & (k < left)[:, None], other=0.0)
        acc = dot(xs, ws, acc, PRECISION)
        xp += BK
        wp += BK
    acc *= scale
    if HAS_BIAS:
        acc += tl.load(b + n, mask=n < out, other=0.0).to(tl.float32)[None, :]
    mask = (m < rows)[:, None] & (n < out)[None, :]
    tl.store(y + m.to(tl.int64)[:, None] * out + n[None, :], acc.to(y.dtype.element_ty), mask=mask)


@jit
def _input(
    g0, g1, w, dx0, dx1, rows0, rows1, in0, in1, out0, out1, ldw, scale0, scale1, tiles0,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    g, dx, rows, width, out, scale = g0, dx0, rows0, in0, out0, scale0
    if pid >= tiles0:
        g, dx, rows, width, out, scale = g1, dx1, rows1, in1, out1, scale1
        pid -= tiles0
    pm, pn = _place(pid, tl.cdiv(rows, BM), tl.cdiv(width, BN), GROUP)
    m, n, k = pm * BM + tl.arange(0, BM), pn * BN + tl.arange(0, BN), tl.arange(0, BK)
    gp = g + m.to(tl.int64)[:, None] * out + k[None, :]
    wp = w + k.to(tl.int64)[:, None] * ldw + n[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, out, BK):
        left = out - k0
        gs = tl.load(gp, mask=(m < rows)[:, None] & (k < left)[None, :], other=0.0)
        ws = tl.load(wp, mask=(k < left)[:, None] & (n < width)[None, :], other=0.0)
        acc = dot(gs, ws, acc, PRECISION)
        gp += BK
        wp += BK * ldw
    acc *= scale
    mask = (m < rows)[:, None] & (n < width)[None, :]
    at = m.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(dx + at, acc.to(dx.dtype.element_ty), mask=mask)


@jit
def _add_outer(
    acc, g, x, rows, out, width, ld, m, n, BK: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """acc + g[:, m].T @ x[:, n]; rows = 0 leaves it as it is."""
    k = tl.arange(0, BK)
    for k0 in range(0, rows, BK):
        t = k0 + k
        at = t.to(tl.int64)
        gs = tl.load(
            g + at[None, :] * out + m[:, None],
            mask=(t < rows)[None, :] & (m < out)[:, None],
            other=0.0,
        )
        xs = tl.load(
            x + at[:, None] * ld + n[None, :],
            mask=(t < rows)[:, None] & (n < width)[None, :],
            other=0.0,
        )
        acc = dot(gs, xs, acc, PRECISION)
    return acc


@jit
def _weight(
    g0, g1, x0, x1, dw, rows0, rows1, in0, in1, out0, out1, ld0, ld1, ldw, height, width, ratio,
    scale, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The whole gradient: a tile inside a slice goes on with that stream's rows, then is stored.

    The result is (ratio * first stream + second stream) * scale.
    """
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    m, n = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    rows0 = tl.where((m0 < out0) & (n0 < in0), rows0, 0)
    rows1 = tl.where((m0 < out1) & (n0 < in1), rows1, 0)
    acc = tl.zeros((BM, BN), tl.float32)
    acc = _add_outer(acc, g0, x0, rows0, out0, in0, ld0, m, n, BK, PRECISION)
    acc *= ratio
    acc = _add_outer(acc, g1, x1, rows1, out1, in1, ld1, m, n, BK, PRECISION)
    acc *= scale
    mask = (m < height)[:, None] & (n < width)[None, :]
    at = m.to(tl.int64)[:, None] * ldw + n[None, :]
    tl.store(dw + at, acc.to(dw.dtype.element_ty), mask=mask)


def _unit_columns(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _tiled(kind: str, weight: Tensor) -> dict[str, int]:
    return dispatch.tiles(f"{OPERATOR}.{kind}", weight, shape=shape_class(weight))


def _triton_forward(streams, weight, bias, outs, exponent=1.0) -> tuple[Tensor, ...]:
    streams, tile = [_unit_columns(x) for x in streams], _tiled("forward", weight)
    weight = _unit_columns(weight)
    ys = [x.new_empty(len(x), out) for x, out in zip(streams, outs, strict=True)]
    counts = [blocks(len(y), tile["BM"]) * blocks(y.shape[1], tile["BN"]) for y in ys]
    if sum(counts):
        widths = two([x.shape[1] for x in streams])
        _forward[(sum(counts),)](
            *two(streams), weight, weight if bias is None else bias, *two(ys),
            *two([len(x) for x in streams]), *widths, *two(outs),
            *two([x.stride(0) for x in streams]), weight.stride(0),
            *[alpha(weight.shape[1], width, exponent) for width in widths], counts[0],
            HAS_BIAS=bias is not None, PRECISION=precision(weight), **tile,
        )  # fmt: skip
    return tuple(ys)


def _triton_input(gradients, weight, widths, exponent=1.0) -> list[Tensor]:
    weight, tile = _unit_columns(weight), _tiled("input", weight)
    dxs = [g.new_empty(len(g), width) for g, width in zip(gradients, widths, strict=True)]
    counts = [blocks(len(x), tile["BM"]) * blocks(x.shape[1], tile["BN"]) for x in dxs]
    if sum(counts):
        _input[(sum(counts),)](
            *two(gradients), weight, *two(dxs), *two([len(g) for g in gradients]),
            *two(widths), *two([g.shape[1] for g in gradients]), weight.stride(0),
            *[alpha(weight.shape[1], width, exponent) for width in two(widths)], counts[0],
            PRECISION=precision(weight), **tile,
        )  # fmt: skip
    return dxs


def _triton_weight(gradients, streams, weight, exponent=1.0) -> Tensor:
    streams, tile = [_unit_columns(x) for x in streams], _tiled("weight", weight)
    dw = torch.empty_like(weight, memory_format=torch.contiguous_format)
    widths = two([x.shape[1] for x in streams])
    scale0, scale1 = (alpha(weight.shape[1], width, exponent) for width in widths)
    rows = [len(x) for x in streams] + [0] * (2 - len(streams))
    _weight[(blocks(len(dw), tile["BM"]), blocks(dw.shape[1], tile["BN"]))](
        *two(gradients), *two(streams), dw, *rows, *widths,
        *two([g.shape[1] for g in gradients]), *two([x.stride(0) for x in streams]),
        dw.stride(0), *dw.shape, scale0 / scale1, scale1, PRECISION=precision(weight), **tile,
    )  # fmt: skip
    return dw


def _described(kind: str, product: Callable) -> Callable:
    """The product on tensor descriptors, where they can describe all of its matrices."""

    def run(*arguments):
        flat = [
            item
            for argument in arguments
            for item in (argument if isinstance(argument, list | tuple) else [argument])
        ]
        matrices = [item for item in flat if isinstance(item, Tensor) and item.dim() == 2]
        widths = [item for item in flat if isinstance(item, int)]
        fits = two_stream_descriptors.fits(matrices, widths)
        return (product if fits else PRODUCTS[kind, "triton"])(*arguments)

    return run


PRODUCTS = {
    ("forward", "library"): slices.forward,
    ("input", "library"): slices.of_input,
    ("weight", "library"): slices.of_weight,
    ("forward", "triton"): _triton_forward,
    ("input", "triton"): _triton_input,
    ("weight", "triton"): _triton_weight,
    ("forward", "descriptors"): _described("forward", two_stream_descriptors.forward),
    ("input", "descriptors"): _described("input", two_stream_descriptors.of_input),
    ("weight", "descriptors"): _described("weight", two_stream_descriptors.of_weight),
}


def cases(chip: str) -> Iterator[Case]:
    """Every kernel with the chip's tiles, for aot.py."""
    pointers = ("x0", "x1", "w", "b", "y0", "y1", "g0", "g1", "dx0", "dx1", "dw")
    sizes = "rows0 rows1 in0 in1 out0 out1 ld0 ld1 ldw tiles0 height width".split()
    types = dict.fromkeys(pointers, "*bf16") | dict.fromkeys(sizes, "i32")
    types |= dict.fromkeys(("scale0", "scale1", "scale", "ratio"), "fp32")
    sixteens = tuple("in0 in1 out0 out1 ld0 ld1 ldw height width".split())
    kernels = {"forward": _forward, "input": _input, "weight": _weight}
    for name, line in dispatch.table()[chip].items():
        operator, _, kind = name.partition("/")[0].partition(".")
        if operator != OPERATOR:
            continue
        tile = dict(line["tiles"])
        warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
        tile |= {"PRECISION": "tf32"} | ({"HAS_BIAS": True} if kind == "forward" else {})
        yield Case(name, kernels[kind], types, tile, warps, stages, sixteens, products=True)
