"""Figures that show a collapse: of the teacher on a few images.

A collapsed network says the same about every image. The loss does not show it: it settles near the
entropy of the targets, at a value that looks like progress.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_ROWS = 256  # of features that a singular value decomposition sees


def entropy(p: Tensor) -> Tensor:
    """Entropy in nats of distributions (..., K) -> (...)."""
    return torch.special.entr(p).sum(-1)


def target_entropy(targets: Tensor) -> Tensor:
    """Mean entropy of the rows (R, K) as a share of log K: 0 one prototype each, 1 uniform."""
    return entropy(targets).mean() / math.log(max(targets.shape[-1], 2))


def prototype_usage(targets: Tensor) -> Tensor:
    """Entropy of the mean row of (R, K) as a share of log K: 0 all rows on the same prototype.

    Sharp targets of R rows cannot reach more than log R.
    """
    return entropy(targets.mean(0)) / math.log(max(targets.shape[-1], 2))


def feature_std(features: Tensor) -> Tensor:
    """Spread of unit rows (R, C): standard deviation of a dimension x sqrt(C), mean over them.

    1: spread evenly over the sphere. 0: every image has the same features.
    """
    unit = F.normalize(features.float(), dim=-1)
    return unit.std(0, correction=0).mean() * math.sqrt(features.shape[-1])


def effective_rank(features: Tensor) -> Tensor:
    """Number of directions that rows (R, C) fill, from 1 to min(R, C); nan for rows that are not
    finite.

    exp of the entropy of the normalised singular values of the unit rows. Source: Roy & Vetterli
    2007; as a sign of collapse: RankMe, Garrido et al. 2023.
    """
    # so few rows are soon done on the host, which waits for a GPU's solver too
    unit = F.normalize(features[:MOST_ROWS].float(), dim=-1).cpu()
    finite = unit.isfinite().all()
    values = torch.linalg.svdvals(torch.where(finite, unit, 0.0))
    rank = entropy(values / values.sum().clamp_min(1e-12)).exp()
    return torch.where(finite, rank, math.nan).to(features.device)


@torch.no_grad()
def figures(features: Tensor, targets: Iterable[Tensor]) -> dict[str, Tensor]:
    """The health/... metrics of one slot, each a scalar on its device.

    features (R, C): the teacher's class tokens. targets: (R, K) of each head.
    """
    shares = torch.stack([torch.stack([target_entropy(t), prototype_usage(t)]) for t in targets])
    target, usage = shares.mean(0)
    return {
        "health/target_entropy": target,
        "health/prototype_usage": usage,
        "health/feature_std": feature_std(features),
        "health/effective_rank": effective_rank(features),
    }
