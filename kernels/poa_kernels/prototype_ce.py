"""Cross-entropy of rows against soft targets over prototypes, without the rows' logits in memory.

    s = rows @ prototypes.T / temperature
    loss[r, j] = sum over i in targets[j].index[r] of -sum_k p_j[i, k] log softmax(s[r])_k
    p_j = softmax(targets[j].rows @ targets[j].prototypes.T / targets[j].temperature + bias)

Cross-entropy is linear in the target, so all terms of a row are one pass. The forward pass keeps
two numbers per row and target; backward makes the logits again, tile by tile: no atomics, the
same result every time. Teacher scores exist for one call at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from poa_kernels import dispatch, sinkhorn
from poa_kernels.language import Case, blocks, dot, jit, power_of_two, precision, tl
from poa_kernels.prototype_ce_chunks import finely, in_chunks, is_large

OPERATOR = "prototype_ce"
PROGRAMS = 264  # two for each multiprocessor of a Hopper chip
WIDEST = 512  # bytes of a row that stay in a multiprocessor
LIFT = tl.constexpr(4096.0)  # keeps 1 / K above the smallest fp16 number


@dataclass(frozen=True)
class Target:
    """Distributions over K prototypes, and which of them each row is compared with. No gradient.

    rows (R, D), prototypes (K, D), bias (K,) or None. index (N, J) int32: the J distributions
    that add up to the target of each of the N rows; -1: none.
    """

    rows: Tensor
    prototypes: Tensor
    temperature: float
    bias: Tensor | None
    index: Tensor

    def scores(self) -> Tensor:
        """(R, K)."""
        return finely(self.rows) @ finely(self.prototypes).t()


def prototype_ce(
    rows: Tensor, prototypes: Tensor, targets: Sequence[Target], temperature: float
) -> Tensor:
    """(N, number of targets) float32 for rows (N, D), prototypes (K, D); one or two targets."""
    assert rows.shape[1] == prototypes.shape[1] and 1 <= len(targets) <= 2
    for target in targets:
        assert len(target.index) == len(rows) and len(target.prototypes) == len(prototypes)
        assert target.index.dtype == torch.int32
        assert target.rows.element_size() == rows.element_size()
    too_wide = rows.shape[1] * rows.element_size() > WIDEST
    if too_wide or dispatch.choose(OPERATOR, rows) == "reference":
        plain = in_chunks if is_large(rows, prototypes) else reference
        return plain(rows, prototypes, targets, temperature)
    tensors = [t for target in targets for t in (target.rows, target.prototypes, target.bias)]
    missing = max(16, power_of_two(rows.shape[1])) - rows.shape[1]
    if missing:  # zeros change no product
        rows, prototypes = (F.pad(x, (0, missing)) for x in (rows, prototypes))
    indices = [target.index for target in targets]
    scales = [target.temperature for target in targets]
    return _PrototypeCe.apply(rows, prototypes, temperature, scales, *tensors, *indices)


def reference(
    rows: Tensor, prototypes: Tensor, targets: Sequence[Target], temperature: float
) -> Tensor:
    """The same with logits and probabilities in memory, in float32 or better."""
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    log_p = F.log_softmax((rows @ prototypes.t()).to(wide) / temperature, dim=-1)
    losses = []
    for target in targets:
        with torch.no_grad():
            scores = (target.rows @ target.prototypes.t()).to(wide) / target.temperature
            p = F.softmax(scores if target.bias is None else scores + target.bias, dim=-1)
            p = torch.cat((p, p.new_zeros(1, p.shape[1])))  # row -1
            p = p[target.index.long()].sum(1)
        losses.append(-(p * log_p).sum(-1))
    return torch.stack(losses, dim=1)


class _PrototypeCe(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, prototypes, temperature, scales, *tensors):
        rows, prototypes = rows.contiguous(), prototypes.contiguous()
        targets = _targets(scales, tensors)
        losses, row_lse, masses, lses = _losses(rows, prototypes, targets, temperature)
        ctx.save_for_backward(rows, prototypes, row_lse, masses, *lses, *tensors)
        ctx.temperature, ctx.scales = temperature, scales
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, prototypes, row_lse, masses, *rest = ctx.saved_tensors
        count = len(ctx.scales)
        targets = _targets(ctx.scales, rest[count:])
        of_rows, of_prototypes = _gradients(
            rows, prototypes, targets, ctx.temperature, gradient, row_lse, masses, rest[:count]
        )
        return of_rows, of_prototypes, None, None, *[None] * len(rest[count:])


def _targets(scales: Sequence[float], tensors: Sequence[Tensor | None]) -> list[Target]:
    indices = tensors[3 * len(scales) :]
    return [
        Target(tensors[3 * i], tensors[3 * i + 1], scale, tensors[3 * i + 2], indices[i])
        for i, scale in enumerate(scales)
    ]


def tables(targets: Sequence[Target], lses: Sequence[Tensor] | None = None) -> tuple:
    """(arguments, constants, lses) that tell a kernel about the targets."""
    scores = [target.scores() for target in targets]
    with dispatch.using("triton"):
        lses = lses or [
            sinkhorn.row_lse(s, t.temperature, t.bias) for s, t in zip(scores, targets, strict=True)
        ]
    constants = {"TWO": len(targets) == 2}
    arguments = []
    for i in range(2):  # a lone target stands in for the second, which is not looked at
        t, s, lse = targets[i % len(targets)], scores[i % len(targets)], lses[i % len(targets)]
        biased = t.bias is not None and i < len(targets)
        bias, index = t.bias if biased else lse, t.index.contiguous()
        arguments += [s, lse, index, bias, 1 / t.temperature]
        constants |= {f"J{i}": t.index.shape[1], f"BIAS{i}": biased}
    return arguments, constants, lses


def _parts(row_blocks: int, prototypes: int, size: int) -> tuple[int, int]:
    """(parts, prototypes of each): enough programs to fill the chip, each of useful length."""
    parts = max(1, min(16, PROGRAMS // max(row_blocks, 1), prototypes // 1024))
    each = blocks(blocks(prototypes, parts), size) * size
    return blocks(prototypes, each), each


def _losses(rows: Tensor, prototypes: Tensor, targets: Sequence[Target], temperature: float):
    tile, (n, d), k = dispatch.tiles(f"{OPERATOR}.loss", rows), rows.shape, len(prototypes)
    arguments, constants, lses = tables(targets)
    row_blocks = blocks(n, tile["BM"])
    parts, each = _parts(row_blocks, k, tile["BK"])
    # per part of the prototypes: maximum, sum; per target: target . scores, mass
    out = rows.new_empty(2 + 2 * len(targets), parts, n, dtype=torch.float32)
    if n:
        _loss[(row_blocks, parts)](
            rows, prototypes, *arguments, out, n, k, 1 / temperature, each, parts * n,
            D=d, PRECISION=precision(rows), **constants, **tile,
        )  # fmt: skip
    top = out[0].amax(0)
    row_lse = top + (out[1] * torch.exp(out[0] - top)).sum(0).log()
    dots, masses = out[2::2].sum(1), out[3::2].sum(1)
    return (masses * row_lse - dots).t(), row_lse, masses, lses


def _gradients(
    rows: Tensor, prototypes: Tensor, targets: Sequence[Target], temperature: float,
    gradient: Tensor, row_lse: Tensor, masses: Tensor, lses: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (n, d), k = rows.shape, len(prototypes)
    if n == 0:
        return torch.zeros_like(rows), torch.zeros_like(prototypes)
    arguments, constants, _ = tables(targets, lses)
    # at most 1, so that 16-bit operands stay in range; the factor comes back in float32
    weights = gradient.t().float()
    largest = weights.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    weights = (weights / largest).contiguous()
    known = (rows, prototypes, *arguments, row_lse, masses, weights)
    constants |= {"D": d, "PRECISION": precision(rows)}

    tile = dispatch.tiles(f"{OPERATOR}.rows", rows)
    parts, each = _parts(blocks(n, tile["BM"]), k, tile["BK"])
    of_rows = rows.new_empty(parts, n, d, dtype=torch.float32)
    _of_rows[(blocks(n, tile["BM"]), parts)](
        *known, of_rows, n, k, 1 / temperature, each, **constants, **tile
    )
    tile = dispatch.tiles(f"{OPERATOR}.prototypes", rows)
    of_prototypes = torch.empty_like(prototypes, dtype=torch.float32)
    _of_prototypes[(blocks(k, tile["BK"]),)](
        *known, of_prototypes, n, k, 1 / temperature, **constants, **tile
    )
    scaled = of_rows.sum(0) * (largest / temperature)
    return scaled.to(rows.dtype), of_prototypes.mul_(largest / temperature).to(prototypes.dtype)


@jit
def _distribution(
    table, lse, index, bias, inverse_temperature, prototypes, m, rows, k,
    J: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """(BM, BK): the sum of the target distributions of rows m at prototypes k."""
    shift = tl.zeros_like(k).to(tl.float32)
    if BIAS:
        shift = tl.load(bias + k, mask=k < prototypes, other=0.0)
    total = tl.zeros((m.shape[0], k.shape[0]), tl.float32)
    for j in tl.static_range(J):
        i = tl.load(index + m * J + j, mask=m < rows, other=-1)
        mask = (i >= 0)[:, None] & (k < prototypes)[None, :]
        at = table + i.to(tl.int64)[:, None] * prototypes + k[None, :]
        x = tl.load(at, mask=mask, other=0.0).to(tl.float32) * inverse_temperature
        x += shift[None, :] - tl.load(lse + i, mask=i >= 0, other=0.0)[:, None]
        total += tl.where(mask, tl.exp(x), 0.0)
    return total


@jit
def _loss(
    x, p, table0, lse0, index0, bias0, it0, table1, lse1, index1, bias1, it1, out,
    rows, prototypes, inverse_temperature, each, plane,
    D: tl.constexpr, TWO: tl.constexpr, J0: tl.constexpr, J1: tl.constexpr, BIAS0: tl.constexpr,
    BIAS1: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of rows against one part of the prototypes, with a running maximum."""
    m, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    xs = tl.load(x + m.to(tl.int64)[:, None] * D + d[None, :], mask=(m < rows)[:, None], other=0.0)
    top = tl.full((BM,), -1e38, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    dot0, mass0 = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    dot1, mass1 = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    first = tl.program_id(1) * each
    last = min(first + each, prototypes)
    for k0 in range(first, last, BK):
        k = k0 + tl.arange(0, BK)
        ps = p + k.to(tl.int64)[None, :] * D + d[:, None]
        ps = tl.load(ps, mask=(k < last)[None, :], other=0.0)
        s = dot(xs, ps, tl.zeros((BM, BK), tl.float32), PRECISION) * inverse_temperature
        t = _distribution(table0, lse0, index0, bias0, it0, prototypes, m, rows, k, J0, BIAS0)
        dot0 += tl.sum(t * s, 1)
        mass0 += tl.sum(t, 1)
        if TWO:
            t = _distribution(table1, lse1, index1, bias1, it1, prototypes, m, rows, k, J1, BIAS1)
            dot1 += tl.sum(t * s, 1)
            mass1 += tl.sum(t, 1)
        s = tl.where((k < last)[None, :], s, -1e38)
        higher = tl.maximum(top, tl.max(s, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(s - higher[:, None]), 1)
        top = higher
    at = out + tl.program_id(1) * rows + m
    tl.store(at, top, mask=m < rows)
    tl.store(at + plane, total, mask=m < rows)
    tl.store(at + 2 * plane, dot0, mask=m < rows)
    tl.store(at + 3 * plane, mass0, mask=m < rows)
    if TWO:
        tl.store(at + 4 * plane, dot1, mask=m < rows)
        tl.store(at + 5 * plane, mass1, mask=m < rows)


@jit
def _slope(
    s, table0, lse0, index0, bias0, it0, table1, lse1, index1, bias1, it1, lse, masses, weights,
    m, rows, k, prototypes, scale, TWO: tl.constexpr, J0: tl.constexpr, J1: tl.constexpr,
    BIAS0: tl.constexpr, BIAS1: tl.constexpr,
):  # fmt: skip
    """(BM, BK): scale[m] * d (weights . losses) / d s, zero outside rows and prototypes."""
    inside = m < rows
    w = tl.load(weights + m, mask=inside, other=0.0) * scale
    t = _distribution(table0, lse0, index0, bias0, it0, prototypes, m, rows, k, J0, BIAS0)
    t *= w[:, None]
    mass = tl.load(masses + m, mask=inside, other=0.0) * w
    if TWO:
        w = tl.load(weights + rows + m, mask=inside, other=0.0) * scale
        more = _distribution(table1, lse1, index1, bias1, it1, prototypes, m, rows, k, J1, BIAS1)
        t += more * w[:, None]
        mass += tl.load(masses + rows + m, mask=inside, other=0.0) * w
    q = tl.exp(s - tl.load(lse + m, mask=inside, other=0.0)[:, None])
    mask = inside[:, None] & (k < prototypes)[None, :]
    return tl.where(mask, mass[:, None] * q - t, 0.0)


@jit
def _of_rows(
    x, p, table0, lse0, index0, bias0, it0, table1, lse1, index1, bias1, it1, lse, masses, weights,
    dx, rows, prototypes, inverse_temperature, each,
    D: tl.constexpr, TWO: tl.constexpr, J0: tl.constexpr, J1: tl.constexpr, BIAS0: tl.constexpr,
    BIAS1: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    m, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    xs = tl.load(x + m.to(tl.int64)[:, None] * D + d[None, :], mask=(m < rows)[:, None], other=0.0)
    # each row's own largest weight: a small one loses nothing in 16 bits
    size = tl.abs(tl.load(weights + m, mask=m < rows, other=0.0))
    if TWO:
        size = tl.maximum(size, tl.abs(tl.load(weights + rows + m, mask=m < rows, other=0.0)))
    scale = LIFT / tl.maximum(size, 1e-30)
    acc = tl.zeros((BM, D), tl.float32)
    first = tl.program_id(1) * each
    last = min(first + each, prototypes)
    for k0 in range(first, last, BK):
        k = k0 + tl.arange(0, BK)
        ps = p + k.to(tl.int64)[:, None] * D + d[None, :]
        ps = tl.load(ps, mask=(k < last)[:, None], other=0.0)
        s = dot(xs, tl.trans(ps), tl.zeros((BM, BK), tl.float32), PRECISION) * inverse_temperature
        ds = _slope(
            s, table0, lse0, index0, bias0, it0, table1, lse1, index1, bias1, it1, lse, masses,
            weights, m, rows, k, prototypes, scale, TWO, J0, J1, BIAS0, BIAS1,
        )  # fmt: skip
        acc = dot(ds.to(ps.dtype), ps, acc, PRECISION)
    at = (tl.program_id(1).to(tl.int64) * rows + m)[:, None] * D + d[None, :]
    tl.store(dx + at, acc * (size / LIFT)[:, None], mask=(m < rows)[:, None])


@jit
def _of_prototypes(
    x, p, table0, lse0, index0, bias0, it0, table1, lse1, index1, bias1, it1, lse, masses, weights,
    dp, rows, prototypes, inverse_temperature,
    D: tl.constexpr, TWO: tl.constexpr, J0: tl.constexpr, J1: tl.constexpr, BIAS0: tl.constexpr,
    BIAS1: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    k, d = tl.program_id(0) * BK + tl.arange(0, BK), tl.arange(0, D)
    inside = (k < prototypes)[:, None]
    at = k.to(tl.int64)[:, None] * D + d[None, :]
    ps = tl.trans(tl.load(p + at, mask=inside, other=0.0))
    acc = tl.zeros((BK, D), tl.float32)
    scale = tl.full((BM,), LIFT, tl.float32)
    for m0 in range(0, rows, BM):
        m = m0 + tl.arange(0, BM)
        xs = x + m.to(tl.int64)[:, None] * D + d[None, :]
        xs = tl.load(xs, mask=(m < rows)[:, None], other=0.0)
        s = dot(xs, ps, tl.zeros((BM, BK), tl.float32), PRECISION) * inverse_temperature
        ds = _slope(
            s, table0, lse0, index0, bias0, it0, table1, lse1, index1, bias1, it1, lse, masses,
            weights, m, rows, k, prototypes, scale, TWO, J0, J1, BIAS0, BIAS1,
        )  # fmt: skip
        acc = dot(tl.trans(ds).to(xs.dtype), xs, acc, PRECISION)
    tl.store(dp + at, acc / LIFT, mask=inside)


def cases(chip: str) -> Iterator[Case]:
    """Every kernel with the chip's tiles, for aot.py: patches, class tokens with imitation."""
    types = dict.fromkeys(("x", "p"), "*bf16") | dict.fromkeys(("table0", "table1"), "*fp16")
    floats = "lse0 lse1 bias0 bias1 lse masses weights out dx dp".split()
    types |= dict.fromkeys(floats, "*fp32") | dict.fromkeys(("index0", "index1"), "*i32")
    types |= dict.fromkeys(("it0", "it1", "inverse_temperature"), "fp32")
    types |= dict.fromkeys(("rows", "prototypes", "each", "plane"), "i32")
    targets = {"patches": (False, 1), "class tokens": (True, 2)}
    kernels = {"loss": _loss, "rows": _of_rows, "prototypes": _of_prototypes}
    for kind, kernel in kernels.items():
        tile = dict(dispatch.entry(chip, f"{OPERATOR}.{kind}")["tiles"])
        warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
        for name, (two, links) in targets.items():
            constants = {"TWO": two, "J0": links, "J1": 1, "BIAS0": True, "BIAS1": False}
            constants |= tile | {"D": 256, "PRECISION": "tf32"}
            label, sixteens = f"{OPERATOR}.{kind}, {name}", ("prototypes", "each")
            yield Case(label, kernel, types, constants, warps, stages, sixteens, products=True)
