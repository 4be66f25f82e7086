"""SEED's loss: a student's similarities to a queue of the teacher's embeddings (arXiv 2101.04731).

The teacher says p = softmax_j(z_T d_j / t), d_0 = z_T itself, then the queue. The cross-entropy to
the student's q needs of p its mean m = sum_j p_j d_j alone, a vector for each row:

    - sum_j p_j log q_j  =  logsumexp_j(z d_j / s) - z m / s
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from poa_ds.model.projector import unit

CHUNK = 2**24  # similarities that are made at a time
PATCHES = 0.07  # temperature of the similarities of patches; after lightly-train's distillation v3


def towards(z: Tensor, own: Tensor, mean: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Cross-entropy (R,) of a student's unit rows z (R, D) to targets of these means (R, D).

    own: the teacher's rows of the same views. queue (K, D).
    """
    to_queue = _LogSumExp.apply(z, queue, temperature, max(1, CHUNK // len(z)))
    to_own = (z * own).sum(-1) / temperature
    return torch.logaddexp(to_queue, to_own) - (z * mean).sum(-1) / temperature


@torch.no_grad()
def mean_neighbour(z: Tensor, own: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Means (R, D) of own and queue as unit rows z (R, D) weigh them."""
    found, size = [], max(1, CHUNK // len(queue))
    for rows, alone in zip(z.split(size), own.split(size), strict=True):
        p = probabilities(rows, alone, queue, temperature)
        found.append(p[:, :1] * alone + p[:, 1:] @ queue)
    return torch.cat(found)


@torch.no_grad()
def probabilities(z: Tensor, own: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Softmax (R, 1 + K) of the similarities of rows z to own (first) and the queue."""
    similar = torch.cat(((z * own).sum(-1, keepdim=True), z @ queue.T), dim=1)
    return torch.softmax(similar / temperature, dim=1)


def alike(patches: Tensor) -> Tensor:
    """Log-softmax (R, N, N): how each patch of a crop (R, N, C) is similar to all of that crop."""
    rows = unit(patches)
    return torch.log_softmax(rows @ rows.transpose(1, 2) / PATCHES, dim=-1)


def patches_apart(patches: Tensor, target: Tensor) -> Tensor:
    """Divergence of a student's patches (R, N, C) from a teacher's softmax (R, N, N), the mean.

    The two may have any number of channels each.
    """
    apart = torch.special.xlogy(target, target) - target * alike(patches)
    return apart.sum(-1).mean()


class _LogSumExp(torch.autograd.Function):
    """logsumexp_j(z d_j / temperature), a part of the queue at a time; keeps no similarity."""

    @staticmethod
    def forward(ctx, z, queue, temperature, chunk):
        parts = [torch.logsumexp(z @ d.T / temperature, 1) for d in queue.split(chunk)]
        total = torch.logsumexp(torch.stack(parts), 0)
        ctx.save_for_backward(z, queue, total)
        ctx.temperature, ctx.chunk = temperature, chunk
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        z, queue, total = ctx.saved_tensors
        mean = torch.zeros_like(z)
        for d in queue.split(ctx.chunk):
            mean += torch.exp(z @ d.T / ctx.temperature - total[:, None]) @ d
        return mean * (gradient / ctx.temperature)[:, None], None, None, None
