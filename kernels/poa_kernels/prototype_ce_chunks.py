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

from poa_kernels.compiled import compilable, varying

LARGE = 1 << 24  # rows x prototypes: 64 MiB of float32
# of a chunk likewise: the caches of a CPU profit from small ones, a GPU wants few launches
CHUNK, CHUNK_ON_GPU = LARGE, 1 << 27


def is_large(rows: Tensor, prototypes: Tensor, largest: int = LARGE) -> bool:
    """Whether logits of all rows at once would be a waste of memory."""
    return len(rows) * len(prototypes) > largest


def rows_at_a_time(prototypes: Tensor, chunk: int | None = None) -> int:
    """Rows of a chunk of so many numbers; None: what suits the device."""
    chunk = chunk or (CHUNK_ON_GPU if prototypes.is_cuda else CHUNK)
    return max(chunk // len(prototypes), 1)


def finely(x: Tensor) -> Tensor:
    """x, but fp16 where it is bf16 on a GPU: for scores of unit rows, which are at most 1.

    Divided by a temperature of 0.04, rounding a score to 8 bits moves probabilities by some
    percent, to 11 bits by some thousandths. CPUs multiply fp16 slowly.
    """
    return x.half() if x.dtype == torch.bfloat16 and x.is_cuda else x


def in_chunks(
    rows: Tensor,
    prototypes: Tensor,
    targets: Sequence,
    temperature: float,
    chunk: int | None = None,
) -> Tensor:
    """As prototype_ce.prototype_ce. chunk: see rows_at_a_time."""
    return _InChunks.apply(rows, prototypes, tuple(targets), temperature, chunk)


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, prototypes, targets, temperature, chunk):
        ctx.save_for_backward(rows, prototypes)
        ctx.targets, ctx.temperature, ctx.chunk = targets, temperature, chunk
        losses = rows.new_empty(len(rows), len(targets), dtype=_wide(rows))
        for part in _chunks(rows, prototypes, chunk):
            logits = _logits(rows[part], prototypes, temperature)
            log_q = F.log_softmax(logits, dim=-1, dtype=losses.dtype)
            for j, target in enumerate(targets):
                links = target.index[part].unbind(1)
                losses[part, j] = -sum(_dots(*_asked(target, i), log_q, i) for i in links)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, prototypes = ctx.saved_tensors
        of_rows, of_prototypes = torch.empty_like(rows), torch.zeros_like(prototypes).to(gradient)
        for part in _chunks(rows, prototypes, ctx.chunk):
            weights = gradient[part] / ctx.temperature
            links = [
                (target, link, weights[:, j] * (link >= 0))
                for j, target in enumerate(ctx.targets)
                for link in target.index[part].unbind(1)
            ]
            logits = _logits(rows[part], prototypes, ctx.temperature)
            # sum over links of weight (q - p), in the memory of q
            of_logits = F.softmax(logits, dim=-1, dtype=gradient.dtype)
            of_logits *= sum(weight for _, _, weight in links)[:, None]
            for target, link, weight in links:
                _subtract(of_logits, *_asked(target, link), weight)
            of_logits = of_logits.to(rows.dtype)
            of_rows[part] = of_logits @ prototypes
            of_prototypes += of_logits.t() @ rows[part]
        return of_rows, of_prototypes.to(prototypes.dtype), None, None, None


def _chunks(rows: Tensor, prototypes: Tensor, chunk: int | None) -> Iterator[slice]:
    size = rows_at_a_time(prototypes, chunk)
    return (slice(first, first + size) for first in range(0, len(rows), size))


def _logits(rows: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """(n, K) in the rows' precision; the temperature costs no pass over them."""
    return (rows / temperature) @ prototypes.t()


def _asked(target, link: Tensor) -> tuple[Tensor, Tensor | None, float | Tensor]:
    """Scores (n, K), bias and temperature of what each row is linked with; of any for -1.

    Without a bias the scores are divided by the temperature already.
    """
    rows = target.rows[link.clamp_min(0).long()]
    if target.bias is None:
        return _logits(rows, target.prototypes, target.temperature), None, 1.0
    # rounded as when the bias was made of them, before the temperature
    scores = rows @ target.prototypes.t()
    return scores, target.bias, varying(target.temperature, scores)


def _distribution(scores: Tensor, bias: Tensor | None, temperature: float | Tensor) -> Tensor:
    """(n, K): softmax(scores / temperature + bias), wide as the bias is."""
    if isinstance(temperature, Tensor):
        scores = scores.to(bias.dtype) / temperature + bias
    elif bias is not None:
        scores = torch.add(bias, scores, alpha=1 / temperature)
    return F.softmax(scores, dim=-1, dtype=_wide(scores))


@compilable
def _dots(scores, bias, temperature, log_q: Tensor, link: Tensor) -> Tensor:
    """(n,): products of rows, 0 for -1. Not by bmm, which sums long rows slowly."""
    return _distribution(scores, bias, temperature).mul_(log_q).sum(1) * (link >= 0)


@compilable
def _subtract(of_logits: Tensor, scores, bias, temperature, weight: Tensor) -> None:
    """of_logits -= weight x distribution, by rows and in place."""
    distribution = _distribution(scores, bias, temperature)
    of_logits.addcmul_(distribution, weight[:, None], value=-1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
