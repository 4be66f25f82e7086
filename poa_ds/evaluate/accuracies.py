"""From classes in the order of their scores to what papers print: top-1, top-5, mean per class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import torch
from torch import Tensor

from poa_ds.evaluate import results

FIRST = 5  # classes that are kept of each image
NONE = -1  # in the place of a class


@dataclass(frozen=True)
class Accuracy:
    """In percent, with half of its 95 % interval in points, of so many images."""

    percent: float
    error: float
    images: int


Found = Mapping[str, Accuracy]  # metric -> what was found


def mean(draws: Sequence[Found]) -> Found:
    """Of the same images by what several draws of labels have taught."""
    return {metric: _mean([one[metric] for one in draws]) for metric in draws[0]}


def spread(draws: Sequence[Found]) -> Mapping[str, float]:
    """Metric -> the largest minus the smallest of its values, in points."""
    values = {metric: [one[metric].percent for one in draws] for metric in draws[0]}
    return {metric: max(of) - min(of) for metric, of in values.items()}


def _mean(draws: Sequence[Accuracy]) -> Accuracy:
    percent, error = (fmean(getattr(d, name) for d in draws) for name in ("percent", "error"))
    return Accuracy(percent, error, draws[0].images)


def best_first(scores: Tensor, among: Tensor | None = None) -> Tensor:
    """(n, 5) int64: the classes with the highest scores (n, K), the smaller number of equal ones.

    among: (K,) booleans, the classes that may be answered. NONE where there are fewer.
    """
    if among is not None:
        scores = scores.masked_fill(~among.to(scores.device), -torch.inf)
    order = scores.sort(dim=1, descending=True, stable=True)
    found = order.indices[:, :FIRST].masked_fill(order.values[:, :FIRST].isneginf(), NONE)
    missing = found.new_full((len(found), max(FIRST - scores.shape[1], 0)), NONE)
    return torch.cat((found, missing), dim=1)


def accuracies(first: Tensor, truth: Tensor, answers: int) -> Mapping[str, Accuracy]:
    """top1, top5, mean_per_class of `best_first`; answers: how many classes there are to answer.

    truth: classes (n,), or booleans (n, K) where several are right, of which top1 alone is told.
    top5 needs more than five answers. mean_per_class: over the classes that occur.
    """
    if truth.ndim == 2:
        there = first[:, 0] != NONE
        right = truth.gather(1, first[:, :1].clamp_min(0))[:, 0] & there
        return {"top1": share(right)}
    right = first == truth[:, None]
    found = {"top1": share(right[:, 0])}
    if answers > FIRST:
        found["top5"] = share(right.any(1))
    return found | {"mean_per_class": _mean_per_class(right[:, 0], truth)}


def share(right: Tensor) -> Accuracy:
    """Of booleans (n,), those that are true."""
    percent = 100 * int(right.sum()) / len(right)
    return Accuracy(percent, results.error(percent, len(right)), len(right))


def _mean_per_class(right: Tensor, truth: Tensor) -> Accuracy:
    """error: of a mean of independent shares."""
    of_class, counts = torch.unique(truth, return_inverse=True, return_counts=True)[1:]
    hits = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, of_class, right.double())
    shares = hits / counts
    variance = float((shares * (1 - shares) / counts).sum())
    error = 196 * sqrt(variance) / len(counts)
    return Accuracy(100 * float(shares.mean()), error, len(right))
