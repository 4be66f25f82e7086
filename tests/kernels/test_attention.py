"""Attention on packed qkv rows, head by head, against the definition."""

import pytest
import torch
from torch import Tensor

from poa_kernels import attention
from tests.kernels.truth import DTYPES, check, randn, strided, transposed

# segments, heads, head size
SHAPES = {
    "local crops": ([(3, 37)], 2, 64),
    "short and long": ([(1, 70), (2, 10)], 1, 32),
    "lengths": ([(2, 1), (1, 16), (1, 17), (1, 64)], 2, 16),
    "no sequence": ([(0, 37), (1, 5)], 2, 16),
    "nothing": ([(0, 5)], 1, 16),
    "a head size without a kernel": ([(2, 5)], 3, 24),
}


def definition(segments: list[tuple[int, int]], head_dim: int):
    def function(qkv: Tensor) -> Tensor:
        heads = qkv.shape[1] // (3 * head_dim)
        rows, outputs = qkv.split([n * tokens for n, tokens in segments]), []
        for part, (n, tokens) in zip(rows, segments, strict=True):
            x = part.reshape(n, tokens, heads, 3, head_dim)
            q, k, v = x[..., 0, :], x[..., 1, :], x[..., 2, :]
            p = torch.softmax(torch.einsum("nihd,njhd->nhij", q, k) / head_dim**0.5, -1)
            o = torch.einsum("nhij,njhd->nihd", p, v)
            outputs.append(o.reshape(n * tokens, heads * head_dim))
        return torch.cat(outputs)

    return function


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradient(shape: str, dtype: torch.dtype) -> None:
    segments, heads, head_dim = SHAPES[shape]
    qkv = randn(sum(n * tokens for n, tokens in segments), 3 * heads * head_dim, seed=0)
    check(
        lambda x: attention.attention(x, segments, head_dim),
        definition(segments, head_dim),
        [qkv],
        dtype,
    )


@pytest.mark.parametrize("lay_out", [lambda x: x, strided, transposed])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_copies_nothing_wrong(shape: str, lay_out) -> None:
    segments, heads, head_dim = SHAPES[shape]
    leaves = [
        randn(sum(n * t for n, t in segments), 3 * heads * head_dim, seed=0).requires_grad_()
        for _ in range(2)
    ]
    ours = attention.reference(lay_out(leaves[0]), segments, head_dim)
    truth = definition(segments, head_dim)(leaves[1])
    weights = randn(*truth.shape, seed=1)
    for out in (ours, truth):
        (out * weights).sum().backward()
    assert torch.allclose(ours, truth, atol=1e-12)
    assert torch.allclose(leaves[0].grad, leaves[1].grad, atol=1e-12)


@pytest.mark.parametrize("lay_out", [strided, transposed])
def test_qkv_need_not_be_contiguous(lay_out) -> None:
    segments, heads, head_dim = SHAPES["short and long"]
    check(
        lambda x: attention.attention(x, segments, head_dim),
        definition(segments, head_dim),
        [randn(90, 3 * heads * head_dim, seed=0)],
        torch.float32,
        lay_out=lay_out,
    )
