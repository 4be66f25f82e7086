"""The half steps of Sinkhorn-Knopp against the plain alternation in float64."""

import pytest
import torch
from torch import Tensor

from poa_kernels import dispatch, sinkhorn
from tests.kernels.truth import DEVICE, DTYPES, randn, strided, transposed

SHAPES = [(19, 101), (1, 1), (3, 200), (69, 32)]


def biases(scores: Tensor, temperature: float, iterations: int = 3) -> tuple[Tensor, Tensor]:
    """(bias, lse) by the operators."""
    bias, lse = -scores.float().amax(0) / temperature, None
    for _ in range(iterations):
        bias = bias - sinkhorn.column_mass(scores, temperature, bias, lse).log()
        lse = sinkhorn.row_lse(scores, temperature, bias)
    return bias, lse


def alternation(scores: Tensor, temperature: float) -> Tensor:
    q = torch.exp(scores.double() / temperature)
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    return q


def unit_scores(rows: int, prototypes: int) -> Tensor:
    x, w = randn(rows, 16, seed=0), randn(prototypes, 16, seed=1)
    normalize = torch.nn.functional.normalize
    return normalize(x, dim=-1) @ normalize(w, dim=-1).T


@pytest.mark.parametrize("mode", ["triton", "reference"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_half_steps_balance_like_the_alternation(
    mode: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    scores = unit_scores(*shape).to(dtype).to(DEVICE)
    with dispatch.using(mode):
        bias, lse = biases(scores, 0.05)
    got = torch.exp(scores.double() / 0.05 + bias.double() - lse.double()[:, None])
    # float32 exponents of size 1 / temperature; the scores themselves are exact here
    assert (got - alternation(scores, 0.05)).abs().max() < 2e-5


@pytest.mark.parametrize("lay_out", [strided, transposed])
def test_scores_need_not_be_contiguous(lay_out) -> None:
    scores = unit_scores(13, 70).float().to(DEVICE)
    arranged = lay_out(scores)
    bias, lse = biases(scores, 0.06)
    assert torch.equal(sinkhorn.row_lse(arranged, 0.06, bias), lse)
    mass = sinkhorn.column_mass(scores, 0.06, bias, lse)
    assert torch.equal(sinkhorn.column_mass(arranged, 0.06, bias, lse), mass)


def test_no_rows_have_no_mass() -> None:
    scores = torch.zeros(0, 50, device=DEVICE)
    assert sinkhorn.column_mass(scores, 0.05).tolist() == [0.0] * 50
    assert sinkhorn.row_lse(scores, 0.05).shape == (0,)


def test_scores_far_below_zero_and_far_above_keep_their_sums() -> None:
    scores = torch.tensor([[-3e4, -3e4], [3e4, -3e4], [0.0, 1.0]], device=DEVICE)
    expected = torch.logsumexp(scores.double() / 0.5, 1)
    assert torch.allclose(sinkhorn.row_lse(scores, 0.5).double(), expected, rtol=1e-6)


def test_the_matrix_vector_form_is_the_alternation() -> None:
    scores = unit_scores(41, 23)
    bias = sinkhorn.reference(scores, 0.05, 3)
    assert (torch.softmax(scores / 0.05 + bias, 1) - alternation(scores, 0.05)).abs().max() < 1e-12
