"""Rows by their numbers, each at most once: PyTorch's own backward passes sort them on a GPU."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_rows(x: Tensor, rows: Tensor, dim: int = 0) -> Tensor:
    """x[rows] (or x[:, rows])."""
    return _Gathered.apply(x, rows, dim)


def add_to_rows(x: Tensor, rows: Tensor, added: Tensor) -> Tensor:
    """x with `added` added to its rows of these numbers."""
    return _Scattered.apply(x, rows, added)


class _Scattered(torch.autograd.Function):
    """x with `added` added to some rows. No row is there twice: nothing is sorted, no atomics."""

    @staticmethod
    def forward(ctx, x, rows, added):
        ctx.save_for_backward(rows)
        return x.index_copy(0, rows, x.index_select(0, rows) + added)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (rows,) = ctx.saved_tensors
        return gradient, None, gradient.index_select(0, rows)


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
