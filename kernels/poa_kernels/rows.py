"""Rows by their numbers, each at most once: PyTorch's own backward passes sort them on a GPU."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_rows(x: Tensor, rows: Tensor, dim: int = 0) -> Tensor:
    """x[rows] (or x[:, rows])."""
    return _Gathered.apply(x, rows, dim)


def add_to_rows(
    x: Tensor, rows: Tensor, branch: Tensor, gamma: Tensor, factor: Tensor | None
) -> Tensor:
    """x with factor x gamma x branch added to its rows of these numbers.

    branch (r, C), gamma (C,), factor (r,) or None. x and factor may be finer than these.
    """
    return _Added.apply(x, rows, branch, gamma, factor)


def take_rows(x: Tensor, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x, x[rows] in that precision), whose gradients meet here."""
    return _Taken.apply(x, rows, dtype)


def saves_launches(x: Tensor) -> bool:
    """Whether fewer operations are worth more than the order of their roundings, as on a GPU."""
    return x.is_cuda


class _Added(torch.autograd.Function):
    """No row is there twice: nothing is sorted, no atomics."""

    @staticmethod
    def forward(ctx, x, rows, branch, gamma, factor):
        ctx.save_for_backward(rows, branch, gamma, factor)
        scaled, taken = branch * gamma, x.index_select(0, rows)
        if factor is not None and saves_launches(x):
            return x.index_copy(0, rows, taken.addcmul_(scaled, factor[:, None]))
        if factor is not None:
            scaled = scaled * factor[:, None].to(scaled.dtype)
        return x.index_copy(0, rows, taken + scaled)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, branch, gamma, factor = ctx.saved_tensors
        taken = gradient.index_select(0, rows)
        if factor is None:
            taken = taken.to(branch.dtype)
        else:  # and rounded, in one operation
            taken = torch.mul(taken, factor[:, None], out=torch.empty_like(branch))
        return gradient, None, taken * gamma, (taken * branch).sum(0), None


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, dtype):
        ctx.save_for_backward(rows)
        return x.view_as(x), x.index_select(0, rows).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, of_taken):
        (rows,) = ctx.saved_tensors
        of_taken = of_taken.to(gradient.dtype)
        if gradient.dtype == torch.float32 and saves_launches(gradient):
            return gradient.index_add(0, rows, of_taken), None, None  # atomics that never meet
        added = gradient.index_select(0, rows) + of_taken
        return gradient.index_copy(0, rows, added), None, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, dim):
        ctx.save_for_backward(rows)
        ctx.shape, ctx.dim = x.shape, dim
        return x.index_select(dim, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (rows,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy_(ctx.dim, rows, gradient), None, None
