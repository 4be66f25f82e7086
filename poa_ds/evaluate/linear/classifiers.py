"""Linear classifiers, many at once: several learning rates of one kind of features are one product.

Each minimises its own cross-entropy by SGD with momentum and a cosine to 0, so that they do not
know of each other. Gradients are written out (softmax minus one-hot), in float32. Source of the
protocol: DINOv2's linear evaluation, whose blocks POA chooses otherwise (features.even4).
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# each times batch / 256
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
MOMENTUM, INIT = 0.9, 0.01
TOGETHER = 4  # rates in one product: a fixed number, so that any number of ranks computes the same


@dataclass(frozen=True)
class Unit:
    """Some rates on one kind of features of one size. columns: of the size's features (B, D)."""

    size: str
    kind: str
    columns: slice
    rates: tuple[float, ...]
    first: int  # number of its first rate

    @property
    def width(self) -> int:
        return self.columns.stop - self.columns.start

    @property
    def name(self) -> str:
        return f"{self.size}_{self.kind}_{self.first}".replace(" ", "_")


def units(size: str, kinds: Mapping[str, slice], rates: Sequence[float] = RATES) -> list[Unit]:
    """All classifiers of a size. kinds: of features, with their columns (`features.kinds`)."""
    pieces = -(-len(rates) // TOGETHER)
    cuts = [round(len(rates) * i / pieces) for i in range(pieces + 1)]
    return [
        Unit(size, kind, columns, tuple(rates[a:b]), a)
        for kind, columns in kinds.items()
        for a, b in pairwise(cuts)
    ]


def dealt(every: Sequence[Unit], ranks: int) -> list[list[Unit]]:
    """Each rank's units, about the same work for all; the same on every rank."""
    hands: list[list[Unit]] = [[] for _ in range(ranks)]
    work = [0] * ranks
    for unit in sorted(every, key=lambda unit: (-unit.width * len(unit.rates), unit.name)):
        rank = work.index(min(work))
        hands[rank].append(unit)
        work[rank] += unit.width * len(unit.rates)
    return hands


def cosine(step: int, steps: int) -> float:
    """The share of its rate with which a classifier learns in this step of so many."""
    return (1 + math.cos(math.pi * step / steps)) / 2


class Classifiers:
    """The classifiers of a unit: weight (R, K, C), bias (R, K) and their momenta."""

    def __init__(self, unit: Unit, classes: int, *, seed: int, device: torch.device | str) -> None:
        self.unit = unit
        drawn = torch.stack(
            [
                torch.randn(classes, unit.width, generator=_generator(unit, number, seed))
                for number in range(unit.first, unit.first + len(unit.rates))
            ]
        )
        self.weight = INIT * drawn.to(device)
        self.bias = torch.zeros(len(unit.rates), classes, device=device)
        self.weight_momentum = torch.zeros_like(self.weight)
        self.bias_momentum = torch.zeros_like(self.bias)
        self.rates = torch.tensor(unit.rates, device=device)

    def scores(self, features: Tensor) -> Tensor:
        """(B, R, K) of a size's features (B, D)."""
        flat = features[:, self.unit.columns] @ self.weight.flatten(0, 1).T
        return flat.unflatten(1, self.bias.shape) + self.bias

    def learn(self, features: Tensor, labels: Tensor, share: float) -> None:
        """One step on a batch (B, D) with its labels (B,). share: of the rates."""
        wrong = self.scores(features).softmax(-1)
        wrong[torch.arange(len(labels), device=labels.device), :, labels] -= 1
        wrong /= len(labels)
        weight = (wrong.flatten(1).T @ features[:, self.unit.columns]).view_as(self.weight)
        self.weight_momentum.mul_(MOMENTUM).add_(weight)
        self.bias_momentum.mul_(MOMENTUM).add_(wrong.sum(0))
        rates = share * self.rates
        self.weight -= rates[:, None, None] * self.weight_momentum
        self.bias -= rates[:, None] * self.bias_momentum

    def right(self, features: Tensor, labels: Tensor) -> Tensor:
        """(R,) int64: how many rows each puts into their class."""
        return (self.scores(features).argmax(-1) == labels[:, None]).sum(0)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, and `load` takes."""
        return {
            "weight": self.weight,
            "bias": self.bias,
            "weight_momentum": self.weight_momentum,
            "bias_momentum": self.bias_momentum,
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, own in self.state().items():
            own.copy_(state[name])


def _generator(unit: Unit, number: int, seed: int) -> torch.Generator:
    """Of one classifier: its start does not depend on what else is trained."""
    key = hashlib.sha256(f"{unit.size}/{unit.kind}/{number}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))


def bytes_of(every: Sequence[Unit], classes: int) -> int:
    """Of weights, momenta and gradients."""
    return sum(3 * 4 * classes * unit.width * len(unit.rates) for unit in every)


def chunks(rows: int, block: int) -> Iterator[slice]:
    """Slices of `block` rows."""
    return (slice(first, first + block) for first in range(0, rows, block))
