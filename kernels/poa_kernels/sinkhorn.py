"""Sinkhorn-Knopp as a bias per prototype: its two half steps over scores (R, K), read in place.

After every half step the assignment is exp(scores / temperature + bias - lse), so a bias (K,) and
a number per row are all that is kept. One iteration on one rank is

    mass = column_mass(scores, temperature, bias, lse)      summed over the ranks
    bias = bias - log(mass)
    lse = row_lse(scores, temperature, bias)
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from poa_kernels import dispatch
from poa_kernels.language import Case, blocks, jit, tl

ROWS, COLUMNS = "sinkhorn.row_lse", "sinkhorn.column_mass"
SPLITS = 8  # programs that share the rows of one block of prototypes


def row_lse(scores: Tensor, temperature: float, bias: Tensor | None = None) -> Tensor:
    """(R,): log sum over k of exp(scores / temperature + bias), float32 (float64 of float64)."""
    _check(scores, bias)
    if dispatch.choose(ROWS, scores) == "reference":
        return torch.logsumexp(_exponents(scores, temperature, bias), dim=1)
    scores = _unit_columns(scores)
    lse = scores.new_empty(len(scores), dtype=torch.float32)
    if len(scores):
        arguments = (*scores.shape, scores.stride(0), 1 / temperature)
        _row_lse[(len(scores),)](
            scores, lse if bias is None else bias, lse, *arguments,
            HAS_BIAS=bias is not None, **dispatch.tiles(ROWS, scores),
        )  # fmt: skip
    return lse


def column_mass(
    scores: Tensor, temperature: float, bias: Tensor | None = None, lse: Tensor | None = None
) -> Tensor:
    """(K,): sum over rows of exp(scores / temperature + bias - lse). lse None: zeros.

    With lse = row_lse(...) these are the column sums of the softmax.
    """
    _check(scores, bias)
    if dispatch.choose(COLUMNS, scores) == "reference":
        x = _exponents(scores, temperature, bias)
        return (x if lse is None else x - lse[:, None]).exp().sum(0)
    scores, tile = _unit_columns(scores), dispatch.tiles(COLUMNS, scores)
    rows, prototypes = scores.shape
    share = max(blocks(blocks(rows, SPLITS), tile["BM"]) * tile["BM"], tile["BM"])
    parts = max(blocks(rows, share), 1)
    sums = scores.new_empty(parts, prototypes, dtype=torch.float32)
    _column_mass[(blocks(prototypes, tile["BK"]), parts)](
        scores, sums if bias is None else bias, sums if lse is None else lse, sums,
        rows, prototypes, scores.stride(0), 1 / temperature, share,
        HAS_BIAS=bias is not None, HAS_LSE=lse is not None, **tile,
    )  # fmt: skip
    return sums.sum(0)


def reference(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """The bias (K,) of one rank's scores: the exponential once, then two products per iteration."""
    x = scores if scores.dtype == torch.float64 else scores.float()
    top = x.amax(0) / temperature
    exponentials = torch.exp(x / temperature - top)
    u = torch.ones_like(exponentials[:, 0])
    for _ in range(iterations):
        v = 1 / (u @ exponentials)
        u = 1 / (exponentials @ v)
    return v.log() - top


def _check(scores: Tensor, bias: Tensor | None) -> None:
    assert scores.dim() == 2 and scores.shape[1]
    assert bias is None or bias.shape == scores.shape[1:], "one bias per prototype"


def softmax_mass(scores: Tensor, temperature: float, bias: Tensor) -> Tensor:
    """(K,): column sums of softmax(scores / temperature + bias): both half steps."""
    if dispatch.choose(ROWS, scores) == dispatch.choose(COLUMNS, scores) == "reference":
        return _exponents(scores, temperature, bias).softmax(-1).sum(0)
    return column_mass(scores, temperature, bias, row_lse(scores, temperature, bias))


def _exponents(scores: Tensor, temperature: float, bias: Tensor | None) -> Tensor:
    if bias is not None:  # one pass, wide as the bias is
        return torch.add(bias, scores, alpha=1 / temperature)
    return (scores if scores.dtype == torch.float64 else scores.float()) / temperature


def _unit_columns(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


@jit
def _row_lse(
    scores, bias, lse, rows, prototypes, ld, inverse_temperature,
    HAS_BIAS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One row per program; BK running maxima and sums, joined at the end."""
    row = tl.program_id(0).to(tl.int64)
    top = tl.full((BK,), -float("inf"), tl.float32)
    total = tl.zeros((BK,), tl.float32)
    for k0 in range(0, prototypes, BK):
        k = k0 + tl.arange(0, BK)
        mask = k < prototypes
        x = tl.load(scores + row * ld + k, mask=mask, other=0.0).to(tl.float32)
        x *= inverse_temperature
        if HAS_BIAS:
            x += tl.load(bias + k, mask=mask, other=0.0)
        # a large finite number: inf - inf is not a number
        x = tl.where(mask, x, -1e38)
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    highest = tl.max(top, 0)
    total = tl.sum(total * tl.exp(top - highest), 0)
    tl.store(lse + row, highest + tl.log(total))


@jit
def _column_mass(
    scores, bias, lse, sums, rows, prototypes, ld, inverse_temperature, share,
    HAS_BIAS: tl.constexpr, HAS_LSE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The sums of one block of prototypes over one part of the rows."""
    k = tl.program_id(0) * BK + tl.arange(0, BK)
    first = tl.program_id(1) * share
    last = min(first + share, rows)
    total = tl.zeros((BK,), tl.float32)
    for m0 in range(first, last, BM):
        m = m0 + tl.arange(0, BM)
        mask = (m < last)[:, None] & (k < prototypes)[None, :]
        at = scores + m.to(tl.int64)[:, None] * ld + k[None, :]
        x = tl.load(at, mask=mask, other=0.0).to(tl.float32) * inverse_temperature
        if HAS_BIAS:
            x += tl.load(bias + k, mask=k < prototypes, other=0.0)[None, :]
        if HAS_LSE:
            x -= tl.load(lse + m, mask=m < last, other=0.0)[:, None]
        total += tl.sum(tl.where(mask, tl.exp(x), 0.0), 0)
    tl.store(sums + tl.program_id(1) * prototypes + k, total, mask=k < prototypes)


def cases(chip: str) -> Iterator[Case]:
    """Every kernel with the chip's tiles, for aot.py."""
    types = dict.fromkeys(("bias", "lse", "sums"), "*fp32") | {"inverse_temperature": "fp32"}
    types |= dict.fromkeys(("rows", "prototypes", "ld", "share"), "i32")
    uses = [(ROWS, _row_lse, {"HAS_BIAS": bias}) for bias in (True, False)]
    uses += [(COLUMNS, _column_mass, {"HAS_BIAS": True, "HAS_LSE": lse}) for lse in (True, False)]
    for (name, kernel, constants), scores in itertools.product(uses, ("*fp16", "*fp32")):
        tile = dict(dispatch.entry(chip, name)["tiles"])
        warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
        label = f"{name} of {scores[1:]}" + ("" if all(constants.values()) else ", first")
        kinds = types | {"scores": scores}
        yield Case(label, kernel, kinds, constants | tile, warps, stages, ("prototypes", "ld"))
