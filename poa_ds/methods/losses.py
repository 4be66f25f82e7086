"""The terms of the objective as pure functions of scores and targets (POA eq. 6-10).

Targets are softmax(scores / temperature + bias): Sinkhorn-Knopp over all ranks and centering both
amount to one bias per prototype.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.methods.pairing import count, met
from poa_ds.system import dist
from poa_kernels.sinkhorn import column_mass, softmax_mass

ROUNDING = 1e-6  # a distance of float32 unit vectors that may be none at all


@dataclass(frozen=True)
class Scores:
    """What one student says about B images under one head of K prototypes."""

    global_cls: Tensor  # (2, B, K)  class tokens of the global crops
    local_cls: Tensor  # (L, B, K)  class tokens of the local crops
    patches: Tensor  # (M, K)     masked patches of the global crops


@dataclass(frozen=True)
class Targets:
    """Teacher assignments; every row is a distribution over K prototypes."""

    global_cls: Tensor  # (2, B, K)
    patches: Tensor  # (M, K)


def cross_entropy(scores: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Row-wise cross-entropy. scores, target (..., K), broadcastable -> (...)."""
    return -(target * F.log_softmax(scores / temperature, dim=-1)).sum(-1)


def sinkhorn(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """Balanced assignment over the rows of all ranks. scores (R, K) -> probabilities (R, K)."""
    scores = scores.float()
    bias = sinkhorn_biases(lambda: [(0, scores)], [scores.shape[1]], temperature, iterations)[0]
    return targets(scores, temperature, bias)


def sinkhorn_biases(
    passes: Callable[[], Iterable[tuple[int, Tensor]]],
    prototypes: Sequence[int],
    temperature: float,
    iterations: int,
) -> list[Tensor]:
    """The bias (K_i,) per prototype that balances each of several independent assignments.

    passes() yields (assignment, scores (rows, K_i)), each assignment at least once; it is called
    iterations + 1 times, so scores may be recomputed instead of kept. Only sums over all parts
    and all ranks count; one reduction per iteration serves all assignments. Float32, in the log
    domain: columns to equal mass, rows to mass one is bias -= log of the column sums of
    softmax(scores / temperature + bias).
    """
    tops: list[list[Tensor]] = [[] for _ in prototypes]
    for i, scores in passes():
        tops[i].append(_column_tops(scores))
    top = torch.cat([torch.stack(parts).amax(0) for parts in tops])
    top = dist.all_max(top) / temperature
    top = torch.where(top.isfinite(), top, 0.0)  # an assignment without any row
    bias = -top
    for iteration in range(iterations):
        shifts = bias.split(list(prototypes))
        columns = [torch.zeros_like(shift) for shift in shifts]
        mass = softmax_mass if iteration else column_mass
        for i, scores in passes():
            if len(scores):
                columns[i] = columns[i] + mass(scores, temperature, shifts[i])
        sums = dist.all_sum(torch.cat(columns))
        bias = bias - sums.clamp_min(torch.finfo(torch.float32).tiny).log()
    return list(bias.split(list(prototypes)))


def _column_tops(scores: Tensor) -> Tensor:
    if len(scores) == 0:
        return torch.full(scores.shape[1:], -torch.inf, device=scores.device)
    return scores.float().amax(0)


def centering_bias(center: Tensor, temperature: float) -> Tensor:
    """The bias (K,) that subtracts the running centre of the scores before the softmax."""
    return -center.float() / temperature


def targets(scores: Tensor, temperature: float, bias: Tensor) -> Tensor:
    """Teacher assignments of scores (..., K): each row a distribution, in float32."""
    return F.softmax(scores.float() / temperature + bias, dim=-1)


def match(
    s: Scores, t: Targets, patch_weights: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(dino, ibot) of one student against the teacher.

    dino: mean over the 2 + 2L pairs of different views (student view, teacher global crop).
    ibot: mean over the 2B crops of the mean over that crop's masked patches; unmasked crops
    count 0. patch_weights (M,): 1 / masked patches of that crop. Source: POA eq. 6-8.
    """
    swapped = torch.stack([t.global_cls[crop] for view in range(2) for crop in met(view)])
    across = cross_entropy(s.global_cls, swapped, temperature).mean() * 2
    # cross-entropy is linear in the target: both teacher crops in one product
    first, *more = (t.global_cls[crop] for crop in met(2))
    local = cross_entropy(s.local_cls, sum(more, first), temperature).mean(-1).sum()
    pairs = count(2 + len(s.local_cls))
    patches = cross_entropy(s.patches, t.patches, temperature) * patch_weights
    return (across + local) / pairs, patches.sum() / (2 * s.global_cls.shape[1])


def imitate(elastic: Scores, intact: Scores, temperature: float) -> Tensor:
    """The elastic student towards the intact one, view by view (POA eq. 9).

    No gradient reaches the intact one. Mean over the global rows plus mean over the local rows.
    """

    def one(a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            target = F.softmax(b / temperature, dim=-1)
        return cross_entropy(a, target, temperature).mean()

    both = one(elastic.global_cls, intact.global_cls)
    return both + one(elastic.local_cls, intact.local_cls) if len(elastic.local_cls) else both


def koleo(x: Tensor) -> Tensor:
    """Spread of features: mean -log distance to the nearest neighbour. x (B, C), in float32.

    Source: Sablayrolles et al. 2019, as in DINOv2. 0 for fewer than two rows. Rows that are equal
    but for rounding, and rows of zeros, count in the value and get no gradient: theirs would be
    the tiny epsilons' (1e7 to 1e14, beyond what fp16 holds), in a direction that means nothing.
    """
    if len(x) < 2:
        return x.sum() * 0
    x = x if x.dtype == torch.float64 else x.float()
    with torch.no_grad():
        empty = x.norm(dim=-1, keepdim=True) <= 1e-8
    x = F.normalize(torch.where(empty, x.detach(), x), eps=1e-8, dim=-1)
    with torch.no_grad():
        dots = x @ x.T
        nearest = dots.fill_diagonal_(-1).argmax(1)
    distance = F.pairwise_distance(x, x[nearest], 2, 1e-8)
    distance = torch.where(distance < ROUNDING, distance.detach(), distance)
    return -torch.log(distance + 1e-8).mean()
