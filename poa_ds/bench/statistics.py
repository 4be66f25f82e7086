"""Means of a few seeds with the error that so few allow: Student's t, no assumption beyond it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Literal

CONFIDENCE = 0.95
STEPS = 2000  # of Simpson's rule: nine digits of the quantile
Verdict = Literal["ahead", "behind", "not shown"]


@dataclass(frozen=True)
class Mean:
    """error: half of the 95 % interval; None of a single value, which says nothing about it."""

    mean: float
    error: float | None
    values: tuple[float, ...]

    @property
    def verdict(self) -> Verdict:
        """Of a difference: on which side of 0 the whole interval lies."""
        if self.error is None or abs(self.mean) <= self.error:
            return "not shown"
        return "ahead" if self.mean > 0 else "behind"

    def text(self, sign: str = "") -> str:
        """Mean ± error, one digit."""
        error = "" if self.error is None else f" ± {self.error:.1f}"
        return f"{self.mean:{sign}.1f}{error}"


def mean(values: Sequence[float]) -> Mean:
    """Of at least one value."""
    if len(values) < 2:
        return Mean(values[0], None, tuple(values))
    error = quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Mean(fmean(values), error, tuple(values))


@cache
def quantile(freedom: int) -> float:
    """t with CONFIDENCE of the distribution within ± t."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < CONFIDENCE else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """Share of the distribution within ± t: with x = sqrt(n) tan(a), a power of the cosine."""
    end = math.atan(t / math.sqrt(freedom))
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    h = end / STEPS
    weights = (1 if i in (0, STEPS) else 4 if i % 2 else 2 for i in range(STEPS + 1))
    area = sum(w * math.cos(i * h) ** (freedom - 1) for i, w in enumerate(weights)) * h / 3
    return 2 * math.exp(scale) / math.sqrt(math.pi) * area
