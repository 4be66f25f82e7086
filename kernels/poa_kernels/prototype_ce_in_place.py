"""Prototype cross-entropy whose logits turn into their gradient in the same memory.

PyTorch's products make fp16 logits of some rows, one kernel replaces them by the gradient, two
products end it. So the gradient is made in the forward pass, which must know the losses' weights;
prototype_ce does without logits and weights, this variant keeps its products in cuBLAS.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from poa_kernels import dispatch
from poa_kernels.language import DTYPES, Case, jit, tl
from poa_kernels.prototype_ce import Target, prototype_ce, tables

OPERATOR = "prototype_ce_in_place"
CHUNK = 1024  # rows whose logits are in memory at a time
LIFT = tl.constexpr(4096.0)  # keeps 1 / K above the smallest fp16 number


def prototype_ce_in_place(
    rows: Tensor,
    prototypes: Tensor,
    targets: Sequence[Target],
    temperature: float,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """(sum of weights * losses, losses (N, targets)); only the sum carries a gradient.

    As prototype_ce; weights (N, targets) float32.
    """
    assert weights.shape == (len(rows), len(targets))
    if dispatch.choose(OPERATOR, rows) == "reference" or rows.dtype not in DTYPES:
        losses = prototype_ce(rows, prototypes, targets, temperature)
        return (losses * weights).sum(), losses.detach()
    return _InPlace.apply(rows, prototypes, targets, temperature, weights)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, prototypes, targets, temperature, weights):
        losses, *gradients = _all_rows(rows, prototypes, targets, temperature, weights)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, _):
        of_rows, of_prototypes = ctx.saved_tensors
        return of_rows * gradient, of_prototypes * gradient, None, None, None


def _all_rows(rows, prototypes, targets, temperature, weights) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, gradient of the rows, of the prototypes), chunk by chunk."""
    (n, d), k, low = rows.shape, len(prototypes), rows.element_size() == 2
    arguments, constants, _ = tables(targets)
    largest = weights.abs().amax().clamp_min(1e-30) if n else weights.new_ones(())
    shares = (weights / largest).contiguous()
    losses = weights.new_empty(n, len(targets))
    of_rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
    of_prototypes = torch.zeros(k, d, device=rows.device)
    logit_type = torch.float16 if low else torch.float32
    buffer = torch.empty(min(CHUNK, n), k, device=rows.device, dtype=logit_type)
    columns = prototypes.to(logit_type).t()
    scale = largest / (temperature * LIFT.value)
    for first in range(0, n, CHUNK):
        part = rows[first : first + CHUNK]
        z = torch.mm(part.to(logit_type), columns, out=buffer[: len(part)])
        dz = z.view(rows.dtype)  # the same bytes
        _in_place[(len(part),)](
            z, dz, *arguments, losses, shares, first, k, 1 / temperature,
            **constants, **dispatch.tiles(OPERATOR, rows),
        )  # fmt: skip
        of_rows[first : first + CHUNK] = _wide_product(dz, prototypes) * scale
        of_prototypes += _wide_product(dz.t(), part)
    return losses, of_rows, (of_prototypes * scale).to(prototypes.dtype)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32."""
    if a.is_cuda and a.element_size() == 2:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


@jit
def _distribution(
    table, lse, index, bias, inverse_temperature, prototypes, row, k,
    J: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """(BK,): the sum of one row's target distributions at prototypes k."""
    shift = tl.zeros_like(k).to(tl.float32)
    if BIAS:
        shift = tl.load(bias + k, mask=k < prototypes, other=0.0)
    total = tl.zeros_like(shift)
    for j in tl.static_range(J):
        i = tl.load(index + row * J + j).to(tl.int64)
        if i >= 0:
            x = tl.load(table + i * prototypes + k, mask=k < prototypes, other=0.0)
            x = x.to(tl.float32) * inverse_temperature + shift - tl.load(lse + i)
            total += tl.where(k < prototypes, tl.exp(x), 0.0)
    return total


@jit
def _in_place(
    z, dz, table0, lse0, index0, bias0, it0, table1, lse1, index1, bias1, it1, losses, shares,
    first, prototypes, inverse_temperature, TWO: tl.constexpr, J0: tl.constexpr, J1: tl.constexpr,
    BIAS0: tl.constexpr, BIAS1: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One row: its losses in the first sweep, its gradient over its logits in the second."""
    here, row = tl.program_id(0).to(tl.int64) * prototypes, first + tl.program_id(0)
    top, total = tl.full((BK,), -1e38, tl.float32), tl.zeros((BK,), tl.float32)
    dot0, mass0 = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.float32)
    dot1, mass1 = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.float32)
    for k0 in range(0, prototypes, BK):
        k = k0 + tl.arange(0, BK)
        s = tl.load(z + here + k, mask=k < prototypes, other=0.0).to(tl.float32)
        s *= inverse_temperature
        t = _distribution(table0, lse0, index0, bias0, it0, prototypes, row, k, J0, BIAS0)
        dot0 += t * s
        mass0 += t
        if TWO:
            t = _distribution(table1, lse1, index1, bias1, it1, prototypes, row, k, J1, BIAS1)
            dot1 += t * s
            mass1 += t
        s = tl.where(k < prototypes, s, -1e38)
        higher = tl.maximum(top, s)
        total = total * tl.exp(top - higher) + tl.exp(s - higher)
        top = higher
    highest = tl.max(top, 0)
    lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    count: tl.constexpr = 2 if TWO else 1
    all0 = tl.sum(mass0, 0)
    tl.store(losses + row * count, all0 * lse - tl.sum(dot0, 0))
    w0 = tl.load(shares + row * count) * LIFT
    mass = all0 * w0
    w1 = 0.0
    if TWO:
        all1 = tl.sum(mass1, 0)
        tl.store(losses + row * count + 1, all1 * lse - tl.sum(dot1, 0))
        w1 = tl.load(shares + row * count + 1) * LIFT
        mass += all1 * w1
    for k0 in range(0, prototypes, BK):
        k = k0 + tl.arange(0, BK)
        s = tl.load(z + here + k, mask=k < prototypes, other=0.0).to(tl.float32)
        g = mass * tl.exp(s * inverse_temperature - lse)
        g -= w0 * _distribution(table0, lse0, index0, bias0, it0, prototypes, row, k, J0, BIAS0)
        if TWO:
            t = _distribution(table1, lse1, index1, bias1, it1, prototypes, row, k, J1, BIAS1)
            g -= w1 * t
        tl.store(dz + here + k, g.to(dz.dtype.element_ty), mask=k < prototypes)


def cases(chip: str) -> Iterator[Case]:
    """The kernel with the chip's tiles, for aot.py."""
    types = {"z": "*fp16", "dz": "*bf16"} | dict.fromkeys(("table0", "table1"), "*fp16")
    types |= dict.fromkeys("lse0 lse1 bias0 bias1 losses shares".split(), "*fp32")
    types |= dict.fromkeys(("index0", "index1"), "*i32")
    types |= dict.fromkeys(("it0", "it1", "inverse_temperature"), "fp32")
    types |= dict.fromkeys(("first", "prototypes"), "i32")
    tile = dict(dispatch.entry(chip, OPERATOR)["tiles"])
    warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
    constants = {"TWO": True, "J0": 2, "J1": 1, "BIAS0": True, "BIAS1": False} | tile
    yield Case(OPERATOR, _in_place, types, constants, warps, stages, ("prototypes",))
