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
AT_A_TIME = 8192  # rows whose distances to all centres are there at once


@dataclass(frozen=True)
class Clusters:
    """labels (n,) of the rows, centres (K, C); inertia: the sum of squared distances to them."""

    labels: Tensor
    centres: Tensor
    inertia: float


def nearest(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(numbers (n,), squared distances (n,)) of the centre that is nearest to each row."""
    lengths, labels, distances = centres.square().sum(1), [], []
    for part in x.split(AT_A_TIME):
        least = (lengths - 2 * part @ centres.T).min(1)
        labels.append(least.indices)
        distances.append((least.values + part.square().sum(1)).clamp_min(0))
    return torch.cat(labels), torch.cat(distances)


def begin(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, C) rows to start from (k-means++): far rows are likely, the best of a few is taken.

    generator: on the CPU, so that a seed draws the same on every device.
    """

    def drawn(weights: Tensor, number: int) -> Tensor:
        sums = weights.cumsum(0)
        places = torch.rand(number, generator=generator, dtype=torch.float64).to(x.device)
        return torch.searchsorted(sums, places * sums[-1]).clamp_max(len(x) - 1)

    tries = 2 + int(math.log(count))
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    distances = (x - x[chosen[0]]).square().sum(1)
    for _ in range(count - 1):
        tried = drawn(distances, tries)
        shorter = torch.stack([(x - x[row]).square().sum(1) for row in tried]).minimum(distances)
        best = int(shorter.sum(1).argmin())
        chosen.append(int(tried[best]))
        distances = shorter[best]
    return x[chosen].clone()


def lloyd(x: Tensor, centres: Tensor) -> Clusters:
    """From rows (n, C) and centres (K, C) to start from, until nothing moves or little."""
    least = TOLERANCE * float(x.var(0, correction=0).mean())
    before = torch.full((len(x),), -1, device=x.device)
    for _ in range(MOST):
        labels, distances = nearest(x, centres)
        moved = _means(x, labels, distances, centres)
        shift, centres = float((moved - centres).square().sum()), moved
        if torch.equal(labels, before):
            break
        before = labels
        if shift <= least:
            labels, _ = nearest(x, centres)
            break
    else:
        labels, _ = nearest(x, centres)
    inertia = float((x - centres[labels]).square().sum())
    return Clusters(labels, centres, inertia)


def _means(x: Tensor, labels: Tensor, distances: Tensor, centres: Tensor) -> Tensor:
    """The mean of each cluster's rows; an empty one gets the row that is farthest from its own."""
    counts = torch.bincount(labels, minlength=len(centres))
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        labels = labels.clone()
        labels[distances.topk(len(empty)).indices] = empty
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
