"""Alarms about a run's metrics: signs of a collapse, and spikes of the loss."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal


@dataclass(frozen=True)
class Sign:
    """A metric beyond `begins` raises an alarm, which is over when it is back beyond `ends`.

    below: it is the low values that are bad. always: judged during the warm-up too.
    """

    metric: str
    begins: float
    ends: float
    meaning: str
    always: bool = False

    @property
    def below(self) -> bool:
        return self.begins < self.ends

    def is_on(self, value: float, was_on: bool) -> bool:
        limit = self.ends if was_on else self.begins
        return value < limit if self.below else value > limit


# Small runs made to collapse end at entropies of 0.000 or 0.999, a spread below 0.1 and ranks of
# 1.1 to 2; healthy ones beside them have 0.41 to 0.55, usage 0.95, 0.74 to 0.92 and 13 to 18.
SIGNS = (
    Sign("health/target_entropy", 0.01, 0.02, "the teacher puts each image on one prototype"),
    Sign("health/target_entropy", 0.995, 0.99, "the teacher's targets are uniform and say nothing"),
    Sign("health/prototype_usage", 0.05, 0.1, "all images share one prototype"),
    Sign("health/feature_std", 0.1, 0.15, "all images have nearly the same features"),
    Sign("health/effective_rank", 1.5, 2.0, "the features fill a single direction"),
    Sign(
        "health/loss_deviation", 10.0, 5.0, "the loss jumped above its recent values", always=True
    ),
)
UNJUDGED_STEPS = 20  # for collapse, however short the warm-up
WINDOW, FEWEST = 50, 10  # rows that a loss is compared with
LEAST_DEVIATION = 0.01  # of the median: a loss that hardly moves has no deviation of its own


def judged_from(warmup_steps: int) -> int:
    """The first step at which signs of a collapse count."""
    return max(warmup_steps, UNJUDGED_STEPS) + 1


class LossWindow:
    """How far a loss is above the recent ones, in robust standard deviations."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._absent: frozenset[str] = frozenset()

    def deviation(self, terms: Mapping[str, float]) -> float | None:
        """(total - median) / (1.48 median absolute deviation); None with too few to compare.

        The total goes on to the recent ones, which start anew when a term comes in (or leaves).
        """
        absent = frozenset(name for name, value in terms.items() if value == 0)
        if absent != self._absent:
            self._recent.clear()
        self._absent, total = absent, terms["loss/total"]
        if not math.isfinite(total):
            return None
        found = None
        if len(self._recent) >= FEWEST:
            middle = median(self._recent)
            spread = 1.4826 * median(abs(x - middle) for x in self._recent)
            found = (total - middle) / max(spread, LEAST_DEVIATION * abs(middle), 1e-12)
        self._recent.append(total)
        return found


@dataclass(frozen=True)
class Notice:
    """A sign that began to be on, or is over."""

    step: int
    kind: Literal["alarm", "over"]
    text: str

    @property
    def line(self) -> str:
        """It as a warning."""
        return f"warning: step {self.step:,}: {self.kind}: {self.text}"


class Alarms:
    """Which signs are on. Each is said once when it begins and once when it is over."""

    def __init__(self, *, warmup_steps: int) -> None:
        """At first only spikes count: networks begin with features that are all alike."""
        self._judged_from = judged_from(warmup_steps)
        self._losses = LossWindow()
        self._on: set[Sign] = set()

    def judge(self, step: int, row: Mapping[str, float]) -> tuple[dict[str, float], list[Notice]]:
        """(metrics that belong into the row, what to say) of a row with losses and figures."""
        terms = {name: x for name, x in row.items() if name.startswith("loss/")}
        deviation = self._losses.deviation(terms)
        own = {} if deviation is None else {"health/loss_deviation": deviation}
        said = []
        for sign in SIGNS:
            value = {**row, **own}.get(sign.metric)
            judged = sign.always or step >= self._judged_from
            if value is None or not math.isfinite(value) or not judged:
                continue
            was_on = sign in self._on
            if sign.is_on(value, was_on) != was_on:
                self._on ^= {sign}
                said.append(_notice(step, sign, value, was_on))
        return own | {"health/alarm": float(len(self._on))}, said


def _notice(step: int, sign: Sign, value: float, was_on: bool) -> Notice:
    found = f"{sign.metric} is {value:.4g}"
    if was_on:
        return Notice(step, "over", found)
    side = "below" if sign.below else "above"
    return Notice(step, "alarm", f"{found} ({side} {sign.begins:g}): {sign.meaning}")
