"""How predicted classes of pixels agree with true ones: counts per image, and what follows.

A count is (3, K) of an image or of a set: pixels right, predicted and true of each class, among
those that have a class.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from poa_ds.evaluate.segmentation.masks import IGNORED

RESAMPLES = 1000


def counted(predicted: Tensor, true: Tensor, classes: int) -> Tensor:
    """(3, classes) int64 of two masks (H, W)."""
    known = true != IGNORED
    predicted, true = predicted[known].long(), true[known].long()
    parts = (true[predicted == true], predicted, true)
    return torch.stack([torch.bincount(part, minlength=classes) for part in parts])


def miou(counts: Tensor) -> Tensor:
    """(...,) in percent of counts (..., 3, K): the mean over classes of pixels right in the union.

    Classes that neither are there nor are predicted are left out.
    """
    right, predicted, true = counts.double().unbind(-2)
    return _mean(right, predicted + true - right)


def macc(counts: Tensor) -> Tensor:
    """(...,) in percent: the mean over the classes that are there of their pixels right."""
    right, _, true = counts.double().unbind(-2)
    return _mean(right, true)


def aacc(counts: Tensor) -> Tensor:
    """(...,) in percent: pixels right in all."""
    right, _, true = counts.double().unbind(-2)
    return 100 * right.sum(-1) / true.sum(-1)


METRICS: Mapping[str, Callable[[Tensor], Tensor]] = {"miou": miou, "aacc": aacc, "macc": macc}


def _mean(right: Tensor, of: Tensor) -> Tensor:
    there = of > 0
    return 100 * torch.where(there, right / of.clamp(min=1), 0).sum(-1) / there.sum(-1)


def errors(counts: Tensor, *, seed: int) -> dict[str, float | None]:
    """Half of the 95 % interval of each metric, in points, of counts (images, 3, K); None of one.

    By drawing as many images anew, with replacement: pixels of an image are no trials of their own.
    """
    images, flat = len(counts), counts.cpu().double().flatten(1)
    if images < 2:
        return dict.fromkeys(METRICS)
    generator, sums = torch.Generator().manual_seed(seed), []
    for _ in range(RESAMPLES):
        drawn = torch.randint(images, (images,), generator=generator)
        sums.append(torch.bincount(drawn, minlength=images).double() @ flat)
    drawn = torch.stack(sums).unflatten(1, counts.shape[1:])
    drawn = drawn[drawn[:, 2].sum(-1) > 0]  # images without any class alone say nothing
    return {name: float(1.96 * metric(drawn).std()) for name, metric in METRICS.items()}


def majority(train: Tensor, val: Tensor) -> float:
    """mIoU on val where every pixel gets the most frequent class of train; pixels (K,) of each."""
    most = int(train.argmax())
    predicted = torch.zeros_like(val)
    predicted[most] = val.sum()
    right = torch.zeros_like(val)
    right[most] = val[most]
    return float(miou(torch.stack((right, predicted, val))))
