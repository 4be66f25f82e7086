"""Rows by their numbers, and leading parts of parameters, against plain indexing."""

import pytest
import torch

from poa_kernels.rows import gather_rows
from poa_kernels.slices import leading
from tests.kernels.truth import DEVICE, randn


@pytest.mark.parametrize("dim", [0, 1])
def test_gathered_rows_have_the_gradients_of_indexing(dim: int) -> None:
    x = randn(9, 7, 5, seed=0).requires_grad_()
    rows = torch.randperm(x.shape[dim], generator=torch.Generator().manual_seed(1))[:4].to(DEVICE)
    got, wanted = gather_rows(x, rows, dim), x[rows] if dim == 0 else x[:, rows]
    assert torch.equal(got, wanted)
    weights = randn(*wanted.shape, seed=2)
    [of_got] = torch.autograd.grad((got * weights).sum(), x)
    [of_wanted] = torch.autograd.grad((wanted * weights).sum(), x)
    assert torch.equal(of_got, of_wanted)


def test_a_whole_parameter_is_not_cut() -> None:
    gamma = randn(6, seed=0)
    assert leading(gamma, 6) is gamma and torch.equal(leading(gamma, 4), gamma[:4])
