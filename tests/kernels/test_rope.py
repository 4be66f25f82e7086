"""Rotary positions on packed qkv rows against complex multiplication."""

import pytest
import torch
from torch import Tensor

from poa_kernels import rope
from tests.kernels.truth import DTYPES, check, randn, strided, transposed

# segments, tokens of each that turn, heads, head size
SHAPES = {
    "crops of two sizes": ([(1, 20), (2, 7)], (16, 4), 2, 64),
    "all tokens turn": ([(1, 16)], (16,), 1, 32),
    "none turns": ([(2, 3)], (0,), 1, 16),
    "no sequence": ([(0, 9), (1, 5)], (4, 4), 2, 16),
    "nothing": ([(0, 5)], (4,), 1, 16),
    "a head size without a kernel": ([(2, 5)], (4,), 3, 24),
}


def tables(counts: tuple[int, ...], head_dim: int) -> list[Tensor]:
    """Cosines and sines of any angles."""
    angles = [3 * randn(count, head_dim // 2, seed=7 + count) for count in counts]
    return [torch.stack((x.cos(), x.sin())) for x in angles]


def definition(segments: list[tuple[int, int]], head_dim: int, angles: list[Tensor]):
    """Token by token: a pair of channels is a complex number, an angle a factor."""

    def function(qkv: Tensor) -> Tensor:
        x = qkv.double().unflatten(1, (-1, 3, 2, head_dim // 2))
        rows, first = [], 0
        for (n, tokens), table in zip(segments, angles, strict=True):
            for row in range(first, first := first + n * tokens):
                place = (row - first) % tokens - (tokens - table.shape[1])
                q, k, v = (torch.complex(part[:, 0], part[:, 1]) for part in x[row].unbind(1))
                if place >= 0:
                    factor = torch.complex(*table[:, place].double())
                    q, k = q * factor, k * factor
                rows.append(torch.view_as_real(torch.stack((q, k, v), 1)).transpose(-1, -2))
        return torch.stack(rows).flatten(1).to(qkv.dtype) if rows else qkv * 1

    return function


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradient(shape: str, dtype: torch.dtype) -> None:
    segments, counts, heads, head_dim = SHAPES[shape]
    angles = tables(counts, head_dim)
    qkv = randn(sum(n * tokens for n, tokens in segments), 3 * heads * head_dim, seed=0)
    check(
        lambda x: rope.rotate(x, segments, head_dim, [t.float().to(x.device) for t in angles]),
        definition(segments, head_dim, angles),
        [qkv],
        dtype,
    )


@pytest.mark.parametrize("lay_out", [strided, transposed])
def test_qkv_need_not_be_contiguous(lay_out) -> None:
    segments, counts, heads, head_dim = SHAPES["crops of two sizes"]
    angles = tables(counts, head_dim)
    check(
        lambda x: rope.rotate(x, segments, head_dim, [t.float().to(x.device) for t in angles]),
        definition(segments, head_dim, angles),
        [randn(34, 3 * heads * head_dim, seed=0)],
        torch.float32,
        lay_out=lay_out,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_is_exact_in_float64_gradient_included(shape: str) -> None:
    segments, counts, heads, head_dim = SHAPES[shape]
    angles, rows = tables(counts, head_dim), sum(n * tokens for n, tokens in segments)
    leaves = [randn(rows, 3 * heads * head_dim, seed=0).requires_grad_() for _ in range(2)]
    found = rope._Rotated.apply(leaves[0], segments, head_dim, rope.reference, *angles)
    wanted, weights = definition(segments, head_dim, angles)(leaves[1]), randn(*found.shape, seed=1)
    for out in (found, wanted):
        (out * weights).sum().backward()
    assert torch.allclose(found, wanted, atol=1e-14)
    assert torch.allclose(leaves[0].grad, leaves[1].grad, atol=1e-14)
