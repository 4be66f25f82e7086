"""Prototype cross-entropy in plain PyTorch whose logits exist for some rows at a time.

What prototype_ce runs where there is no kernel and the logits would be large. Backward makes each
chunk's logits again: two products more than autograd's way, which keeps about five matrices of
rows x prototypes in float32.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGE = 1 << 23  # rows x prototypes: 32 MiB of float32, the size of a chunk


def is_large(rows: Tensor, prototypes: Tensor) -> bool:
    """Whether logits of all rows at once would be a waste of memory."""
    return len(rows) * len(prototypes) > LARGE


def rows_at_a_time(prototypes: int) -> int:
    """Rows of a chunk."""
    return max(LARGE // prototypes, 1)


def in_chunks(rows: Tensor, prototypes: Tensor, targets: Sequence, temperature: float) -> Tensor:
    """As prototype_ce.prototype_ce."""
    return _InChunks.apply(rows, prototypes, tuple(targets), temperature)


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, prototypes, targets, temperature):
        ctx.save_for_backward(rows, prototypes)
        ctx.targets, ctx.temperature = targets, temperature
        losses = []
        for part, wanted in _chunks(rows, prototypes, targets):
            log_q = F.log_softmax(_logits(part, prototypes, temperature), dim=-1)
            losses.append(torch.stack([-(log_q * p).sum(-1) for p in wanted], dim=1))
        return torch.cat(losses) if losses else rows.new_empty(0, len(targets)).float()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, prototypes = ctx.saved_tensors
        of_rows, of_prototypes = [], torch.zeros_like(prototypes, dtype=gradient.dtype)
        weights = gradient.split(rows_at_a_time(len(prototypes)))
        chunks = _chunks(rows, prototypes, ctx.targets)
        for (part, wanted), weight in zip(chunks, weights, strict=False):
            q = F.softmax(_logits(part, prototypes, ctx.temperature), dim=-1)
            of_logits = _of_logits(q, wanted, weight / ctx.temperature).to(rows.dtype)
            of_rows.append(of_logits @ prototypes)
            of_prototypes += of_logits.t() @ part
        of_rows = torch.cat(of_rows) if of_rows else torch.zeros_like(rows)
        return of_rows, of_prototypes.to(prototypes.dtype), None, None


def _of_logits(q: Tensor, wanted: Iterator[Tensor], weight: Tensor) -> Tensor:
    """sum over targets j of weight_j (mass_j q - p_j), one target in memory at a time."""
    total, masses = torch.zeros_like(q), 0
    for j, p in enumerate(wanted):
        masses = masses + weight[:, j, None] * p.sum(-1, keepdim=True)
        total -= p * weight[:, j, None]
    return torch.addcmul(total, q, masses)


def _logits(rows: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    return _wide(rows @ prototypes.t()) / temperature


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _chunks(
    rows: Tensor, prototypes: Tensor, targets: Sequence
) -> Iterator[tuple[Tensor, Iterator[Tensor]]]:
    """(some rows, the distribution of each under every target)."""
    size = rows_at_a_time(len(prototypes))
    for first in range(0, len(rows), size):
        part = slice(first, min(first + size, len(rows)))
        yield rows[part], (_distributions(target, target.index[part]) for target in targets)


def _distributions(target, index: Tensor) -> Tensor:
    """(n, K): of each row the sum of the distributions it is linked with (n, J); -1: none."""
    total = 0
    for link in index.unbind(1):
        rows = target.rows[link.clamp_min(0).long()]
        scores = _logits(rows, target.prototypes, target.temperature)
        p = F.softmax(scores if target.bias is None else scores.add_(target.bias), dim=-1)
        total = p.masked_fill_((link < 0)[:, None], 0).add_(total)
    return total
