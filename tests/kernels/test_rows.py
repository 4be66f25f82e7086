"""Rows by their numbers, and leading parts of parameters, against plain indexing."""

import pytest
import torch

from poa_kernels import rows as of_rows
from poa_kernels.rows import add_to_rows, gather_rows, take_rows
from poa_kernels.slices import leading, leading_of_all
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


@pytest.mark.parametrize("saves_launches", [False, True])
@pytest.mark.parametrize(
    ("stream", "branches"),
    [(torch.float64,) * 2, (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2],
)
@pytest.mark.parametrize("scaled", [True, False])
def test_a_branch_on_some_rows_is_added_and_the_next_ones_are_taken(
    saves_launches: bool,
    stream: torch.dtype,
    branches: torch.dtype,
    scaled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In either order of the operations as by indexing in float64, gradients too."""
    monkeypatch.setattr(of_rows, "saves_launches", lambda x: saves_launches)
    x, branch, gamma = (randn(*s, seed=i) for i, s in enumerate(((9, 6), (4, 6), (6,))))
    leaves = [x.to(stream), branch.to(branches), gamma.to(branches)]
    first, second = torch.tensor([7, 0, 3, 5]), torch.tensor([5, 2, 7])
    first, second = first.to(DEVICE), second.to(DEVICE)
    factor = (randn(4, seed=3).abs() + 0.5).to(torch.promote_types(stream, torch.float32))
    weights = randn(9, 6, seed=4).double(), randn(3, 6, seed=5).double()

    def run(add, take, leaves) -> list[torch.Tensor]:
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        total, taken = take(add(leaves[0], *leaves[1:]), second)
        value = (total.double() * weights[0]).sum() + (taken.double() * weights[1]).sum()
        return [total, taken, *torch.autograd.grad(value, leaves)]

    def slowly(x, branch, gamma):
        scale = factor.double()[:, None] if scaled else 1.0
        return x.index_add(0, first, branch * gamma * scale)

    got = run(
        lambda *x: add_to_rows(x[0], first, *x[1:], factor if scaled else None),
        lambda x, rows: take_rows(x, rows, branches),
        leaves,
    )
    wanted = run(slowly, lambda x, rows: (x, x[rows]), [leaf.double() for leaf in leaves])
    # bf16 rounds the product, its sum and both gradients: a few of its 2^-8
    error = 1e-12 if branches == torch.float64 else 2**-6
    assert [x.dtype for x in got] == [stream, branches, stream, branches, branches]
    for a, b in zip(got, wanted, strict=True):
        assert (a.double() - b).norm() <= error * b.norm(), (a, b)


def test_leading_parts_for_several_streams_add_up_their_gradients() -> None:
    vectors = [randn(6, seed=i).requires_grad_() for i in range(3)]
    parts = leading_of_all(vectors, (4, 6, 2))
    assert [len(p) for of in parts for p in of] == [4] * 3 + [6] * 3 + [2] * 3
    weights = [randn(n, seed=10 * n + i) for n in (4, 6, 2) for i in range(2)]

    def value(parts) -> torch.Tensor:  # the last vector has no part in it
        used = [p for of in parts for p in of[:2]]
        return sum((p * w).sum() for p, w in zip(used, weights, strict=True))

    got = torch.autograd.grad(value(parts), vectors, allow_unused=True)
    plain = [[v[:n] for v in vectors] for n in (4, 6, 2)]
    wanted = torch.autograd.grad(value(plain), vectors[:2])
    assert not got[2].any()
    for a, b in zip(got[:2], wanted, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12 if a.dtype == torch.float64 else 1e-6)


def test_one_stream_or_narrow_ones_alone_take_their_parts_themselves() -> None:
    vectors = [randn(6, seed=i) for i in range(2)]
    for counts in ((6,), (4,), (4, 2)):
        for part, count in zip(leading_of_all(vectors, counts), counts, strict=True):
            assert all(torch.equal(p, v[:count]) for p, v in zip(part, vectors, strict=True))
