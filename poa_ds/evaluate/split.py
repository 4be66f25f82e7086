"""Rows that are held out or learnt from alone: the same for all sizes, methods and ranks."""

import torch
from torch import Tensor

HELD_OUT = 0.1  # of each class, to choose a setting by


def drawn(labels: Tensor, share: float, *, seed: int, leaving: int = 0) -> Tensor:
    """(n,) booleans: that share of each class, rounded, one at least, all but `leaving` at most.

    A smaller share of the same seed is part of a larger one.
    """
    labels, where = labels.cpu(), labels.device  # a draw is the same on every device
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for label in labels.unique().tolist():
        rows = order[labels[order] == label]
        count = max(1, int(share * len(rows) + 0.5))
        chosen[rows[: min(count, len(rows) - leaving)]] = True
    return chosen.to(where)
