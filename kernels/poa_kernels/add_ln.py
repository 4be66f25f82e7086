"""The seams of a block in one pass each way: residual, LayerScale, stochastic depth, norm.

    x_new = x, and where the branch ran  x + factor * gamma * branch
    y     = layer_norm(x_new) of the rows that the next branch takes

Stochastic depth lets a branch run on some rows only (`Rows`): the kernel scatters its result and
gathers the next branch's rows on the way. Parameters keep their full width, x has the leading
channels. x and x_new may be float32 where branches, parameters and y are not. x_new leaves every
function, so that its gradients meet inside the next one's pass.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from poa_kernels import dispatch
from poa_kernels.compiled import compilable
from poa_kernels.language import Case, blocks, jit, power_of_two, tl
from poa_kernels.rows import add_to_rows, take_rows
from poa_kernels.slices import leading, leading_of_all

OPERATOR = "add_ln"
PROGRAMS = 264  # of the backward pass, each with its own sums for the parameters


@dataclass(frozen=True)
class Rows:
    """The rows of a stream that a branch takes. `inverse` is worth keeping: see `of`.

    rows (r,) int64, no row twice; inverse (T,) int32: place in the branch or -1; factor (r,)
    float32 or None: what the branch's result is multiplied by.
    """

    rows: Tensor
    inverse: Tensor
    factor: Tensor | None

    @staticmethod
    def of(rows: Tensor, total: int, factor: Tensor | None = None) -> "Rows":
        """The record for row numbers out of `total`."""
        inverse = torch.full((total,), -1, dtype=torch.int32, device=rows.device)
        inverse[rows] = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
        return Rows(rows, inverse, None if factor is None else factor.flatten().float())


def of_streams(parameters: Sequence[Tensor], streams: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Vectors of a block as each stream (R, C) gives them to the functions below."""
    if _chosen(streams[0]) != "reference":  # the kernel reads the leading elements itself
        return [tuple(parameters)] * len(streams)
    return leading_of_all(parameters, [x.shape[1] for x in streams])


def norm_rows(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, taken: Rows | None = None
) -> tuple[Tensor, Tensor]:
    """(x, y): y (r, C) the normalised rows that the next branch takes (None: all). x (T, C)."""
    if _chosen(x) == "reference":
        return _norm(x, weight, bias, eps, None if taken is None else taken.rows)
    return _AddLn.apply(x, None, None, None, weight, bias, taken, eps)


def add_norm_rows(
    x: Tensor, branch: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, *,
    eps: float, added: Rows | None = None, taken: Rows | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(x_new, y) from x (T, C) and the result of a branch (r, C) on the rows `added`."""
    assert branch.shape == (len(x) if added is None else len(added.rows), x.shape[1])
    if _chosen(x) == "reference":
        rows = None if taken is None else taken.rows
        return _add_norm(x, branch, gamma, *_where(added), weight, bias, eps, rows)
    return _AddLn.apply(x, branch, gamma, added, weight, bias, taken, eps)


def add_rows(x: Tensor, branch: Tensor, gamma: Tensor, *, added: Rows | None = None) -> Tensor:
    """x_new alone, after the last branch of a block."""
    assert branch.shape == (len(x) if added is None else len(added.rows), x.shape[1])
    if _chosen(x) == "reference":
        return _add(x, branch, gamma, *_where(added))
    return _AddLn.apply(x, branch, gamma, added, None, None, None, 0.0)[0]


def _where(added: Rows | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if added is None else (added.rows, added.factor)


def _plain_add(
    x: Tensor, branch: Tensor, gamma: Tensor, rows: Tensor | None, factor: Tensor | None
) -> Tensor:
    """Reference."""
    gamma = leading(gamma, x.shape[1])
    if rows is None:
        return torch.addcmul(x, branch, gamma)  # one pass over the rows
    return add_to_rows(x, rows, branch, gamma, factor)


def _plain_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Reference."""
    c = x.shape[1]
    # rounded twice, to keep half as much; the kernel rounds once
    x, kept = (x, x.to(weight.dtype)) if rows is None else take_rows(x, rows, weight.dtype)
    return x, F.layer_norm(kept, (c,), leading(weight, c), leading(bias, c), eps)


def _plain_add_norm(
    x, branch, gamma, rows, factor, weight, bias, eps, taken
) -> tuple[Tensor, Tensor]:
    """Reference: one graph for both."""
    return _plain_norm(_plain_add(x, branch, gamma, rows, factor), weight, bias, eps, taken)


_add, _norm, _add_norm = map(compilable, (_plain_add, _plain_norm, _plain_add_norm))


def _chosen(x: Tensor) -> str:
    assert x.dim() == 2
    return dispatch.choose(OPERATOR, x)


class _AddLn(torch.autograd.Function):
    """branch None: nothing is added. weight None: nothing is normalised (y is empty)."""

    @staticmethod
    def forward(ctx, x, branch, gamma, added, weight, bias, taken, eps):
        ctx.set_materialize_grads(False)
        x = x.contiguous()
        branch = None if branch is None else branch.contiguous()
        total, y, mean, scale = _forward_pass(x, branch, gamma, added, weight, bias, taken, eps)
        ctx.save_for_backward(total, branch, gamma, weight, mean, scale)
        ctx.added, ctx.taken = added, taken
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx, of_total, of_y):
        total, branch, gamma, weight, mean, scale = ctx.saved_tensors
        if of_total is None and branch is not None:
            of_total = torch.zeros_like(total)
        if of_y is None and weight is not None:
            count = len(total) if ctx.taken is None else len(ctx.taken.rows)
            of_y = weight.new_zeros(count, total.shape[1])
        of_x, of_branch, sums = _backward_pass(
            of_total, of_y, total, branch, gamma, ctx.added, weight, ctx.taken, mean, scale
        )
        of_gamma, of_weight, of_bias = (
            None if like is None else F.pad(s, (0, len(like) - len(s))).to(like.dtype)
            for s, like in zip(sums, (gamma, weight, weight), strict=True)
        )
        return of_x, of_branch, of_gamma, None, of_weight, of_bias, None, None


def _forward_pass(x, branch, gamma, added, weight, bias, taken, eps):
    adds, norms = branch is not None, weight is not None
    rows, width = x.shape
    total = torch.empty_like(x) if adds else x.view_as(x)
    kept = 0 if not norms else rows if taken is None else len(taken.rows)
    y = x.new_empty(kept, width, dtype=weight.dtype if norms else x.dtype)
    mean, scale = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if rows:
        tile = dispatch.tiles(f"{OPERATOR}.forward", x)
        _forward[(blocks(rows, tile["BM"]),)](
            x, branch if adds else x, gamma if adds else x, *_indexed(added, x),
            weight if norms else x, bias if norms else x, *_indexed(taken, x)[:1],
            total, y, mean, scale, rows, width, eps,
            **_flags(adds, norms, added, taken), BC=power_of_two(width), **tile,
        )  # fmt: skip
    return total, y, mean, scale


def _backward_pass(of_total, of_y, total, branch, gamma, added, weight, taken, mean, scale):
    """(gradient of x, of the branch, sums for gamma, weight and bias)."""
    adds, norms = branch is not None, weight is not None
    rows, width = total.shape
    tile = dispatch.tiles(f"{OPERATOR}.backward", total)
    share = max(blocks(rows, PROGRAMS), tile["BM"])
    programs = max(blocks(rows, share), 1)
    partial = total.new_zeros(3, programs, width, dtype=torch.float32)
    of_total = None if of_total is None else of_total.contiguous()
    of_x = torch.empty_like(total) if norms else of_total
    of_branch = torch.empty_like(branch) if adds else None
    if rows:
        _backward[(programs,)](
            total if of_total is None else of_total, of_y.contiguous() if norms else total,
            total, branch if adds else total, gamma if adds else total, *_indexed(added, total),
            weight if norms else total, *_indexed(taken, total)[:1], mean, scale,
            of_x, of_branch if adds else total, partial, rows, width, share, programs * width,
            **_flags(adds, norms, added, taken), HAS_TOTAL=of_total is not None,
            BC=power_of_two(width), **tile,
        )  # fmt: skip
    return of_x, of_branch, partial.sum(1)


def _indexed(rows: Rows | None, other: Tensor) -> tuple[Tensor, Tensor]:
    """(inverse, factor) for the kernel; `other` stands for what is not read."""
    if rows is None:
        return other, other
    return rows.inverse, other if rows.factor is None else rows.factor


def _flags(adds: bool, norms: bool, added: Rows | None, taken: Rows | None) -> dict[str, bool]:
    scaled = added is not None and added.factor is not None
    scattered = {"SCATTER": added is not None, "FACTOR": scaled, "GATHER": taken is not None}
    return {"ADDS": adds, "NORMS": norms} | scattered


@jit
def _forward(
    x, branch, gamma, inverse, factor, weight, bias, inverse2, total, y, mean, scale,
    rows, width, eps, ADDS: tl.constexpr, NORMS: tl.constexpr, SCATTER: tl.constexpr,
    FACTOR: tl.constexpr, GATHER: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    m, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BC)
    mask = (m < rows)[:, None] & (c < width)[None, :]
    at = m.to(tl.int64)[:, None] * width + c[None, :]
    xs = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        j = m
        if SCATTER:
            j = tl.load(inverse + m, mask=m < rows, other=-1)
        ran = mask & (j >= 0)[:, None]
        b = branch + j.to(tl.int64)[:, None] * width + c[None, :]
        b = tl.load(b, mask=ran, other=0.0).to(tl.float32)
        b *= tl.load(gamma + c, mask=c < width, other=0.0).to(tl.float32)[None, :]
        if FACTOR:
            b *= tl.load(factor + j, mask=(m < rows) & (j >= 0), other=0.0)[:, None]
        # the norm sees what the next block will see
        stored = (xs + b).to(total.dtype.element_ty)
        tl.store(total + at, stored, mask=mask)
        xs = stored.to(tl.float32)
    if NORMS:
        centre = tl.sum(xs, 1) / width
        xs = tl.where(mask, xs - centre[:, None], 0.0)
        s = 1.0 / tl.sqrt(tl.sum(xs * xs, 1) / width + eps)
        w = tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)
        v = tl.load(bias + c, mask=c < width, other=0.0).to(tl.float32)
        j = m
        if GATHER:
            j = tl.load(inverse2 + m, mask=m < rows, other=-1)
        kept = mask & (j >= 0)[:, None]
        ys = (xs * s[:, None] * w[None, :] + v[None, :]).to(y.dtype.element_ty)
        tl.store(y + j.to(tl.int64)[:, None] * width + c[None, :], ys, mask=kept)
        tl.store(mean + m, centre, mask=m < rows)
        tl.store(scale + m, s, mask=m < rows)


@jit
def _backward(
    of_total, of_y, total, branch, gamma, inverse, factor, weight, inverse2, mean, scale,
    of_x, of_branch, partial, rows, width, share, plane,
    ADDS: tl.constexpr, NORMS: tl.constexpr, SCATTER: tl.constexpr, FACTOR: tl.constexpr,
    GATHER: tl.constexpr, HAS_TOTAL: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, BC)
    sum0, sum1 = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    sum2 = tl.zeros((BC,), tl.float32)
    first = tl.program_id(0) * share
    last = min(first + share, rows)
    for m0 in range(first, last, BM):
        m = m0 + tl.arange(0, BM)
        mask = (m < last)[:, None] & (c < width)[None, :]
        at = m.to(tl.int64)[:, None] * width + c[None, :]
        g = tl.zeros((BM, BC), tl.float32)
        if HAS_TOTAL:
            g = tl.load(of_total + at, mask=mask, other=0.0).to(tl.float32)
        if NORMS:
            j = m
            if GATHER:
                j = tl.load(inverse2 + m, mask=m < last, other=-1)
            kept = mask & (j >= 0)[:, None]
            gy = of_y + j.to(tl.int64)[:, None] * width + c[None, :]
            gy = tl.load(gy, mask=kept, other=0.0).to(tl.float32)
            s = tl.load(scale + m, mask=m < last, other=0.0)[:, None]
            xs = tl.load(total + at, mask=kept, other=0.0).to(tl.float32)
            xs -= tl.load(mean + m, mask=m < last, other=0.0)[:, None]
            xs = tl.where(kept, xs * s, 0.0)
            sum1 += tl.sum(gy * xs, 0)
            sum2 += tl.sum(gy, 0)
            gy *= tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)[None, :]
            shift = tl.sum(gy, 1)[:, None] / width + xs * (tl.sum(gy * xs, 1) / width)[:, None]
            g += tl.where(kept, s * (gy - shift), 0.0)
            tl.store(of_x + at, g.to(of_x.dtype.element_ty), mask=mask)
        if ADDS:
            j = m
            if SCATTER:
                j = tl.load(inverse + m, mask=m < last, other=-1)
            ran = mask & (j >= 0)[:, None]
            at = j.to(tl.int64)[:, None] * width + c[None, :]
            if FACTOR:
                g *= tl.load(factor + j, mask=(m < last) & (j >= 0), other=0.0)[:, None]
            b = tl.load(branch + at, mask=ran, other=0.0).to(tl.float32)
            sum0 += tl.sum(g * b, 0)
            g *= tl.load(gamma + c, mask=c < width, other=0.0).to(tl.float32)[None, :]
            tl.store(of_branch + at, g.to(of_branch.dtype.element_ty), mask=ran)
    at = partial + tl.program_id(0) * width + c
    if ADDS:
        tl.store(at, sum0, mask=c < width)
    if NORMS:
        tl.store(at + plane, sum1, mask=c < width)
        tl.store(at + 2 * plane, sum2, mask=c < width)


def cases(chip: str) -> Iterator[Case]:
    """Every kernel with the chip's tiles, for aot.py: each of the functions, widths to 1024."""
    names = "x branch gamma weight bias total y of_total of_y of_x of_branch".split()
    types = dict.fromkeys(names, "*bf16")
    types |= dict.fromkeys(("mean", "scale", "factor", "partial"), "*fp32")
    types |= dict.fromkeys(("inverse", "inverse2"), "*i32") | {"eps": "fp32"}
    types |= dict.fromkeys(("rows", "width", "share", "plane"), "i32")
    functions = {"norm_rows": (False, True), "add_norm_rows": (True, True)}
    functions["add_rows"] = (True, False)
    for kind, kernel in {"forward": _forward, "backward": _backward}.items():
        tile = dict(dispatch.entry(chip, f"{OPERATOR}.{kind}")["tiles"])
        warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
        every = itertools.product(functions.items(), (512, 1024), ("*bf16", "*fp32"))
        for (function, (adds, norms)), columns, stream in every:
            constants = {"ADDS": adds, "NORMS": norms, "SCATTER": adds, "FACTOR": adds}
            constants |= {"GATHER": norms, "BC": columns} | tile
            constants |= {"HAS_TOTAL": True} if kind == "backward" else {}
            own = types | dict.fromkeys(("x", "total", "of_total", "of_x"), stream)
            # x stands for what is not read
            if not adds:
                own |= dict.fromkeys("branch gamma of_branch inverse factor".split(), stream)
            if not norms:
                own |= dict.fromkeys("weight bias y of_y inverse2".split(), stream)
            label = f"{OPERATOR}.{kind}, {function}, {columns}, {stream[1:]} stream"
            yield Case(label, kernel, own, constants, warps, stages, ("width",))
