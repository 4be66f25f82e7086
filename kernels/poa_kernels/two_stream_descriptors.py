"""The products of two_stream_linear on tensor descriptors, whose shape is the slice itself.

What lies outside the slice reads as zero and is not written: no masks. On Hopper the tiles travel
by its copy engine (TMA), on older chips by asynchronous copies, from one source.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from poa_kernels import dispatch
from poa_kernels.language import INSTALLED, Case, blocks, dot, jit, precision, tl
from poa_kernels.slices import alpha, two

OPERATOR = "two_stream_descriptors"
ALIGNMENT = 16  # bytes, of addresses and strides: CUDA's condition


def fits(matrices: Sequence[Tensor], widths: Sequence[int]) -> bool:
    """Whether descriptors can describe the matrices, and results of these widths."""
    bytes_each = matrices[0].element_size()
    return all(width * bytes_each % ALIGNMENT == 0 for width in widths) and all(
        len(x)
        and x.stride(1) == 1
        and x.stride(0) * bytes_each % ALIGNMENT == 0
        and x.data_ptr() % ALIGNMENT == 0
        for x in matrices
    )


def forward(streams, weight, bias, outs, exponent=1.0) -> tuple[Tensor, ...]:
    """As in two_stream_linear, for what `fits` accepts."""
    tile = _prepared("forward", weight)
    ys = [x.new_empty(len(x), out) for x, out in zip(streams, outs, strict=True)]
    counts = [blocks(len(y), tile["BM"]) * blocks(y.shape[1], tile["BN"]) for y in ys]
    _forward[(sum(counts),)](
        *two(streams), weight, weight if bias is None else bias, *two(ys),
        *two([len(x) for x in streams]), *two([x.shape[1] for x in streams]), *two(outs),
        *two([x.stride(0) for x in streams]), weight.stride(0),
        *two([alpha(weight.shape[1], x.shape[1], exponent) for x in streams]), counts[0],
        HAS_BIAS=bias is not None, PRECISION=precision(weight), **tile,
    )  # fmt: skip
    return tuple(ys)


def of_input(gradients, weight, widths, exponent=1.0) -> list[Tensor]:
    """The gradients of the streams."""
    tile = _prepared("input", weight)
    dxs = [g.new_empty(len(g), width) for g, width in zip(gradients, widths, strict=True)]
    counts = [blocks(len(x), tile["BM"]) * blocks(x.shape[1], tile["BN"]) for x in dxs]
    _input[(sum(counts),)](
        *two(gradients), weight, *two(dxs), *two([len(g) for g in gradients]), *two(widths),
        *two([g.shape[1] for g in gradients]), weight.stride(0),
        *two([alpha(weight.shape[1], width, exponent) for width in widths]), counts[0],
        PRECISION=precision(weight), **tile,
    )  # fmt: skip
    return dxs


def of_weight(gradients, streams, weight, exponent=1.0) -> Tensor:
    """The gradient of the whole weight."""
    tile = _prepared("weight", weight)
    dw = torch.empty_like(weight, memory_format=torch.contiguous_format)
    rows = [len(x) for x in streams]
    scale0, scale1 = two([alpha(weight.shape[1], x.shape[1], exponent) for x in streams])
    _weight[(blocks(len(dw), tile["BM"]), blocks(dw.shape[1], tile["BN"]))](
        *two(gradients), *two(streams), dw, *two(rows), *two([x.shape[1] for x in streams]),
        *two([g.shape[1] for g in gradients]), *two([x.stride(0) for x in streams]),
        *dw.shape, scale0 / scale1, scale1, TWO=len(streams) == 2,
        PRECISION=precision(weight), **tile,
    )  # fmt: skip
    return dw


def _prepared(kind: str, x: Tensor) -> dict[str, int]:
    """The tiles; lets Triton allocate the descriptors, which each thread has to allow anew."""
    if INSTALLED and x.is_cuda:
        import triton

        device = x.device  # x itself would be kept alive
        triton.set_allocator(
            lambda size, alignment, stream: torch.empty(size, device=device, dtype=torch.int8)
        )
    return dispatch.tiles(f"{OPERATOR}.{kind}", x)


@jit
def _forward(
    x0, x1, w, b, y0, y1, rows0, rows1, in0, in1, out0, out1, ld0, ld1, ldw, scale0, scale1, tiles0,
    HAS_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    x, y, rows, width, out, ld, scale = x0, y0, rows0, in0, out0, ld0, scale0
    if pid >= tiles0:
        x, y, rows, width, out, ld, scale = x1, y1, rows1, in1, out1, ld1, scale1
        pid -= tiles0
    across = tl.cdiv(out, BN)
    m0, n0 = (pid // across) * BM, (pid % across) * BN
    xs = tl.make_tensor_descriptor(x, [rows, width], [ld, 1], [BM, BK])
    ws = tl.make_tensor_descriptor(w, [out, width], [ldw, 1], [BN, BK])
    ys = tl.make_tensor_descriptor(y, [rows, out], [out, 1], [BM, BN])
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, width, BK):
        acc = dot(xs.load([m0, k0]), ws.load([n0, k0]).T, acc, PRECISION)
    acc *= scale
    if HAS_BIAS:
        n = n0 + tl.arange(0, BN)
        acc += tl.load(b + n, mask=n < out, other=0.0).to(tl.float32)[None, :]
    ys.store([m0, n0], acc.to(y.dtype.element_ty))


@jit
def _input(
    g0, g1, w, dx0, dx1, rows0, rows1, in0, in1, out0, out1, ldw, scale0, scale1, tiles0,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    g, dx, rows, width, out, scale = g0, dx0, rows0, in0, out0, scale0
    if pid >= tiles0:
        g, dx, rows, width, out, scale = g1, dx1, rows1, in1, out1, scale1
        pid -= tiles0
    across = tl.cdiv(width, BN)
    m0, n0 = (pid // across) * BM, (pid % across) * BN
    gs = tl.make_tensor_descriptor(g, [rows, out], [out, 1], [BM, BK])
    ws = tl.make_tensor_descriptor(w, [out, width], [ldw, 1], [BK, BN])
    xs = tl.make_tensor_descriptor(dx, [rows, width], [width, 1], [BM, BN])
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, out, BK):
        acc = dot(gs.load([m0, k0]), ws.load([k0, n0]), acc, PRECISION)
    xs.store([m0, n0], (acc * scale).to(dx.dtype.element_ty))


@jit
def _add_outer(
    acc, g, x, rows, out, width, ld, m0, n0,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + g[:, m0:].T @ x[:, n0:]; nothing where the tile lies outside the slice."""
    gs = tl.make_tensor_descriptor(g, [rows, out], [out, 1], [BK, BM])
    xs = tl.make_tensor_descriptor(x, [rows, width], [ld, 1], [BK, BN])
    last = tl.where((m0 < out) & (n0 < width), rows, 0)
    for k0 in range(0, last, BK):
        acc = dot(gs.load([k0, m0]).T, xs.load([k0, n0]), acc, PRECISION)
    return acc


@jit
def _weight(
    g0, g1, x0, x1, dw, rows0, rows1, in0, in1, out0, out1, ld0, ld1, height, width, ratio, scale,
    TWO: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    acc = _add_outer(acc, g0, x0, rows0, out0, in0, ld0, m0, n0, BM, BN, BK, PRECISION)
    acc *= ratio
    if TWO:
        acc = _add_outer(acc, g1, x1, rows1, out1, in1, ld1, m0, n0, BM, BN, BK, PRECISION)
    ws = tl.make_tensor_descriptor(dw, [height, width], [width, 1], [BM, BN])
    ws.store([m0, n0], (acc * scale).to(dw.dtype.element_ty))


def cases(chip: str) -> Iterator[Case]:
    """Every kernel with the chip's tiles, for aot.py."""
    pointers = ("x0", "x1", "w", "b", "y0", "y1", "g0", "g1", "dx0", "dx1", "dw")
    sizes = "rows0 rows1 in0 in1 out0 out1 ld0 ld1 ldw tiles0 height width".split()
    types = dict.fromkeys(pointers, "*bf16") | dict.fromkeys(sizes, "i32")
    types |= dict.fromkeys(("scale0", "scale1", "scale", "ratio"), "fp32")
    sixteens = tuple("in0 in1 out0 out1 ld0 ld1 ldw height width".split())
    kernels = {"forward": (_forward, {"HAS_BIAS": True}), "input": (_input, {})}
    kernels["weight"] = (_weight, {"TWO": True})
    for kind, (kernel, constants) in kernels.items():
        name = f"{OPERATOR}.{kind}"
        tile = dict(dispatch.entry(chip, name)["tiles"])
        warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
        constants = constants | tile | {"PRECISION": "tf32"}
        yield Case(name, kernel, types, constants, warps, stages, sixteens, products=True)
