"""k-means of features, and how its clusters agree with classes: no label is learnt from.

Lloyd's algorithm with k-means++ starts and scikit-learn's rules: when it ends, and what becomes of
an empty cluster. In float64.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MOST, TOLERANCE = 300, 1e-4  # iterations; times the mean variance, what centres may still move
AT_A_TIME = 16 * 2**20  # bytes of a temporary: larger ones are new pages of the system's each time


@dataclass(frozen=True)
class Clusters:
    """labels (n,) of the rows, centres (K, C); inertia: the sum of squared distances to them."""

    labels: Tensor
    centres: Tensor
    inertia: float


def distances(x: Tensor, centres: Tensor, lengths: Tensor) -> Tensor:
    """(n, K): squared, of all rows to all centres. lengths (n,): of the rows, squared."""
    return (centres.square().sum(1) - 2 * (x @ centres.T)).add_(lengths[:, None]).clamp_min_(0)


def nearest(x: Tensor, centres: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(numbers (n,), squared distances (n,)) of the centre that is nearest to each row."""
    parts = zip(_split(x, len(centres)), _split(lengths, len(centres)), strict=True)
    least = [distances(part, centres, own).min(1) for part, own in parts]
    return torch.cat([part.indices for part in least]), torch.cat([part.values for part in least])


def squared(x: Tensor) -> Tensor:
    """(n,): the squared length of each row."""
    return torch.cat([part.square().sum(1) for part in _split(x, x.shape[1])])


def _split(rows: Tensor, columns: int) -> tuple[Tensor, ...]:
    """So that what is computed of each part, `columns` numbers a row, is AT_A_TIME at most."""
    return rows.split(max(1, AT_A_TIME // (8 * columns)))


def begin(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, C) rows to start from (k-means++): far rows are likely, the best of a few is taken.

    generator: on the CPU, so that a seed draws the same on every device.
    """

    def drawn(weights: Tensor, number: int) -> Tensor:
        sums = weights.cumsum(0)
        places = torch.rand(number, generator=generator, dtype=torch.float64).to(x.device)
        return torch.searchsorted(sums, places * sums[-1]).clamp_max(len(x) - 1)

    tries, lengths = 2 + int(math.log(count)), squared(x)
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    left = distances(x, x[chosen], lengths)[:, 0]
    for _ in range(count - 1):
        tried = drawn(left, tries)
        shorter = distances(x, x[tried], lengths).minimum(left[:, None])
        best = int(shorter.sum(0).argmin())
        chosen.append(int(tried[best]))
        left = shorter[:, best].contiguous()
    return x[chosen].clone()


def lloyd(x: Tensor, centres: Tensor) -> Clusters:
    """From rows (n, C) and centres (K, C) to start from, until nothing moves or little."""
    before, lengths = torch.full((len(x),), -1, device=x.device), squared(x)
    variance = (lengths.mean() - x.mean(0).square().sum()) / x.shape[1]  # mean of all columns'
    least = TOLERANCE * float(variance)
    for _ in range(MOST):
        labels, left = nearest(x, centres, lengths)
        moved = _means(x, labels, left, centres)
        shift, centres = float((moved - centres).square().sum()), moved
        if torch.equal(labels, before):
            break
        before = labels
        if shift <= least:
            labels, _ = nearest(x, centres, lengths)
            break
    else:
        labels, _ = nearest(x, centres, lengths)
    pieces = zip(_split(x, x.shape[1]), _split(labels, x.shape[1]), strict=True)
    inertia = sum(float((part - centres[own]).square().sum()) for part, own in pieces)
    return Clusters(labels, centres, inertia)


def _means(x: Tensor, labels: Tensor, left: Tensor, centres: Tensor) -> Tensor:
    """The mean of each cluster's rows; an empty one gets the row that is farthest from its own."""
    counts = torch.bincount(labels, minlength=len(centres))
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        labels = labels.clone()
        labels[left.topk(len(empty)).indices] = empty
        counts = torch.bincount(labels, minlength=len(centres))
    sums = torch.zeros_like(centres).index_add_(0, labels, x)
    # a cluster may have lost its only row to an empty one: it stays where it was
    return torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)


def best(x: Tensor, count: int, *, starts: int, seed: int) -> Clusters:
    """The clusters with the least inertia of so many starts. ValueError: fewer rows than clusters.

    x: features (n, C).
    """
    if len(x) < count:
        raise ValueError(f"{len(x)} images cannot be in {count} clusters")
    x, generator = x.double(), torch.Generator().manual_seed(seed)
    found = (lloyd(x, begin(x, count, generator)) for _ in range(starts))
    return min(found, key=lambda clusters: clusters.inertia)


def agreement(classes: Tensor, clusters: Tensor) -> Mapping[str, float]:
    """acc, nmi, ari, fmi in percent of two labellings (n,).

    acc: of the best matching that gives a class at most one cluster. nmi: mutual information over
    the mean of both entropies. ari, fmi: of pairs of rows, the adjusted Rand index and the
    geometric mean of precision and recall.
    """
    table = np.zeros((int(classes.max()) + 1, int(clusters.max()) + 1), np.int64)
    np.add.at(table, (classes.cpu().numpy(), clusters.cpu().numpy()), 1)
    n, rows, columns = table.sum(), table.sum(1), table.sum(0)
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    share, expected = table / n, np.outer(rows, columns) / n**2
    there = table > 0
    mutual = float((share[there] * np.log(share[there] / expected[there])).sum())
    entropies = [-sum(p * math.log(p) for p in part / n if p > 0) for part in (rows, columns)]
    together, one, other = ((part.astype(float) ** 2).sum() - n for part in (table, rows, columns))
    chance, mean = one * other / (n * (n - 1)), (one + other) / 2
    found = {
        "acc": matched / n,
        "nmi": 2 * mutual / sum(entropies) if sum(entropies) else 1.0,
        "ari": (together - chance) / (mean - chance) if mean != chance else 1.0,
        "fmi": together / math.sqrt(one * other) if together else 0.0,
    }
    return {name: 100 * float(value) for name, value in found.items()}
