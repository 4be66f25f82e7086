"""Residual, LayerScale, stochastic depth and norm in one pass against the single operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from poa_kernels import add_ln, dispatch
from poa_kernels.add_ln import Rows
from tests.kernels.truth import DEVICE, DTYPES, check, randn, strided, transposed

# rows, channels of the stream, of the parameters, rows that the branches take
SHAPES = {
    "odd width": (30, 23, 40, 24),
    "full width": (17, 40, 40, 17),
    "one row": (1, 8, 8, 1),
    "one kept row": (9, 5, 16, 1),
    "nothing kept": (6, 16, 16, 0),
    "no rows": (0, 16, 24, 0),
}
EPS = 1e-6


def rows_of(shape: str, seed: int, *, factor: bool) -> Rows:
    total, *_, kept = SHAPES[shape]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:kept]
    scale = torch.linspace(1, 2, kept) if factor else None
    return Rows.of(order.to(DEVICE), total, None if scale is None else scale.to(DEVICE))


def leaves(shape: str) -> list[Tensor]:
    total, width, full, kept = SHAPES[shape]
    x, branch = randn(total, width, seed=0), randn(kept, width, seed=1)
    return [x, branch, randn(full, seed=2), 1 + randn(full, seed=3), randn(full, seed=4)]


def single_operations(added: Rows, taken: Rows):
    def function(x: Tensor, r: Tensor, gamma: Tensor, w: Tensor, b: Tensor) -> tuple:
        c = x.shape[1]
        scaled = r * gamma[:c]
        if added.factor is not None:
            scaled = scaled * added.factor[:, None].to(x.dtype)
        total = x.index_add(0, added.rows, scaled)
        return total, F.layer_norm(total[taken.rows], (c,), w[:c], b[:c], EPS)

    return function


def fused(added: Rows, taken: Rows):
    def function(x: Tensor, r: Tensor, gamma: Tensor, w: Tensor, b: Tensor) -> tuple:
        return add_ln.add_norm_rows(x, r, gamma, w, b, eps=EPS, added=added, taken=taken)

    return function


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [True, False])
def test_values_and_all_gradients(shape: str, dtype: torch.dtype, factor: bool) -> None:
    added, taken = rows_of(shape, 1, factor=factor), rows_of(shape, 2, factor=False)
    check(fused(added, taken), single_operations(added, taken), leaves(shape), dtype)


@pytest.mark.parametrize("mode", ["triton", "reference"])
@pytest.mark.parametrize("shape", ["odd width", "full width", "nothing kept"])
def test_the_stream_may_be_finer_than_what_is_added(shape: str, mode: str) -> None:
    """x_new has float32, y the precision of the parameters, a gradient that of its tensor."""
    added, taken = rows_of(shape, 1, factor=True), rows_of(shape, 2, factor=False)
    x, branch, gamma, *norm = leaves(shape)
    inputs = [x.float(), *(low.half() for low in (branch, gamma / 1000, *norm))]
    ours = [x.to(DEVICE).requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    with dispatch.using(mode):
        total, y = fused(added, taken)(*ours)
        last = add_ln.add_rows(*ours[:3], added=added)
    wanted = single_operations(on_cpu(added), on_cpu(taken))(*exact)
    gradients = [randn(*x.shape, seed=8).to(x.dtype) for x in (total, y)]
    torch.autograd.backward((total, y), [g.to(DEVICE) for g in gradients])
    torch.autograd.backward(wanted, [g.double() for g in gradients])
    assert torch.equal(last, total)
    got = [total, y, *(x.grad for x in ours)]
    kinds = [x.dtype for x in (total, y, *ours)]
    assert kinds[:2] == [torch.float, torch.half] and kinds == [x.dtype for x in got]
    for a, b in zip(got, [*wanted, *(x.grad for x in exact)], strict=True):
        limit = 2e-6 if a is total else 3e-3
        assert (a.cpu().double() - b).norm() <= limit * b.norm() + 1e-12, (a, b)


def on_cpu(rows: Rows) -> Rows:
    factor = None if rows.factor is None else rows.factor.cpu()
    return Rows(rows.rows.cpu(), rows.inverse.cpu(), factor)


@pytest.mark.parametrize("lay_out", [strided, transposed])
def test_inputs_need_not_be_contiguous(lay_out) -> None:
    added, taken = rows_of("odd width", 1, factor=True), rows_of("odd width", 2, factor=False)
    inputs = leaves("odd width")
    plain = single_operations(added, taken)
    check(fused(added, taken), plain, inputs, torch.float32, lay_out=lay_out)


@pytest.mark.parametrize("mode", ["triton", "reference"])
def test_a_whole_block_of_three_seams(mode: str) -> None:
    """norm, add + norm, add: the stream's gradients meet inside the passes."""
    first, second = rows_of("odd width", 1, factor=True), rows_of("odd width", 2, factor=True)

    def seams(x: Tensor, _: Tensor, gamma: Tensor, w: Tensor, b: Tensor) -> Tensor:
        x, y = add_ln.norm_rows(x, w, b, eps=EPS, taken=first)
        x, y = add_ln.add_norm_rows(x, y.tanh(), gamma, w, b, eps=EPS, added=first, taken=second)
        return add_ln.add_rows(x, y.sin(), gamma, added=second) + 0 * _.sum()

    def plain(x: Tensor, _: Tensor, gamma: Tensor, w: Tensor, b: Tensor) -> Tensor:
        c = x.shape[1]
        for rows, function in ((first, torch.tanh), (second, torch.sin)):
            y = F.layer_norm(x[rows.rows], (c,), w[:c], b[:c], EPS)
            scaled = function(y) * gamma[:c] * rows.factor[:, None].to(x.dtype)
            x = x.index_add(0, rows.rows, scaled)
        return x + 0 * _.sum()

    with dispatch.using(mode):
        check(seams, plain, leaves("odd width"), torch.float32)


def test_every_row_is_the_default() -> None:
    def all_rows(x: Tensor, r: Tensor, gamma: Tensor, w: Tensor, b: Tensor) -> tuple:
        total, y = add_ln.add_norm_rows(x, r, gamma, w, b, eps=EPS)
        return add_ln.add_rows(total, r, gamma), *add_ln.norm_rows(y, w, b, eps=EPS)

    def plain(x: Tensor, r: Tensor, gamma: Tensor, w: Tensor, b: Tensor) -> tuple:
        total = x + r * gamma
        y = F.layer_norm(total, (40,), w, b, EPS)
        return total + r * gamma, y, F.layer_norm(y, (40,), w, b, EPS)

    check(all_rows, plain, leaves("full width"), torch.float32)
