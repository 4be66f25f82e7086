"""Logistic regression on features that do not change: scikit-learn's objective, solved by torch.

Source of the protocol: DINOv2's logistic regression (C from 45 values by held-out images, then
fitted anew on all of them).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.evaluate.split import HELD_OUT, drawn

GRID = tuple(float(c) for c in 10 ** np.linspace(-6, 5, 45))
ROUND, MOST_ROUNDS = 10, 100  # iterations between two looks at the objective, and looks
LEAST_FALL = 1e-7  # of the objective in a round, relative; below it, it is converged


@dataclass(frozen=True)
class Fit:
    """weight (classes, C + 1), the intercept last; converged: before the most iterations."""

    weight: Tensor
    objective: float
    converged: bool

    def scores(self, x: Tensor) -> Tensor:
        """(n, classes)."""
        return x.double() @ self.weight[:, :-1].T + self.weight[:, -1]

    def percent(self, x: Tensor, labels: Tensor) -> float:
        """Top-1."""
        return 100 * float((self.scores(x).argmax(1) == labels).double().mean())


def objective(weight: Tensor, x: Tensor, labels: Tensor, c: float) -> Tensor:
    """C x the sum of cross-entropies + half the squares of the weights, the intercept free."""
    scores = x @ weight[:, :-1].T + weight[:, -1]
    return c * F.cross_entropy(scores, labels, reduction="sum") + weight[:, :-1].square().sum() / 2


def fit(x: Tensor, labels: Tensor, classes: int, c: float, *, start: Tensor | None = None) -> Fit:
    """Of features (n, C) in float64. start: weights of a neighbouring C, from which it is near."""
    x = x.double()
    weight = start.clone() if start is not None else x.new_zeros(classes, x.shape[1] + 1)
    weight.requires_grad_()
    # of the mean: steps of a length that does not depend on C
    scale = 1 / (c * len(x))
    solver = torch.optim.LBFGS(
        [weight],
        max_iter=ROUND,
        max_eval=10 * ROUND,
        history_size=10,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = scale * objective(weight, x, labels, c)
        value.backward()
        return value.detach()

    before, converged = float(closure()), False
    for _ in range(MOST_ROUNDS):
        solver.step(closure)
        after = float(closure())
        converged = before - after <= LEAST_FALL * abs(after)
        if converged:
            break
        before = after
    return Fit(weight.detach(), after / scale, converged)


def choose(
    x: Tensor, labels: Tensor, classes: int, *, seed: int, grid: Sequence[float] = GRID
) -> tuple[float, float]:
    """(C, its percent) that is best on held-out rows; the smallest of equals.

    ValueError: no class has two images.
    """
    held = drawn(labels, HELD_OUT, seed=seed, leaving=1)
    if not held.any():
        raise ValueError("no class has two images: none can be held out to choose C by")
    best, chosen, start = -1.0, grid[0], None
    for c in sorted(grid):
        found = fit(x[~held], labels[~held], classes, c, start=start)
        percent, start = found.percent(x[held], labels[held]), found.weight
        if percent > best:
            best, chosen = percent, c
    return chosen, best
