"""How a detector is trained: POA's numbers for the two sizes it reports, and a schedule."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from poa_ds.system.errors import UsageError

SHORT_SIDES, LONG_SIDE = tuple(range(480, 801, 32)), 1333  # pixels
BATCH, WEIGHT_DECAY, WARMUP_STEPS = 16, 0.05, 500
DROPS = (27 / 36, 33 / 36)  # shares of the steps behind which the rate is a tenth, a hundredth

Heads = Literal["plain", "cascade"]  # what follows the proposals: Mask R-CNN's head, or three
PREFIXES: dict[Heads, str] = {"plain": "", "cascade": "cascade_"}  # of detectors and metrics


@dataclass(frozen=True)
class Protocol:
    """What is taken of it where an option is not given; all other numbers are POA's in each."""

    heads: Heads
    epochs: float


PROTOCOLS = {"short": Protocol("plain", 12.0), "poa": Protocol("cascade", 36.0)}


def with_protocol(args: argparse.Namespace) -> argparse.Namespace:
    """The options, those that were not given as their protocol has them."""
    usual = PROTOCOLS[args.protocol]
    own = {"heads": args.heads or usual.heads, "epochs": args.epochs or usual.epochs}
    return argparse.Namespace(**vars(args) | own)


@dataclass(frozen=True)
class Row:
    """Numbers for networks of about so many parameters."""

    title: str
    parameters: float
    lr: float
    layer_decay: float
    drop_path: float


ROWS = (Row("ViT-S", 21.7e6, 3e-4, 0.7, 0.1), Row("ViT-B", 85.8e6, 1e-4, 0.65, 0.2))


def nearest(parameters: int) -> Row:
    """The row of the size whose parameters are nearest, as a ratio."""
    return min(ROWS, key=lambda row: max(row.parameters / parameters, parameters / row.parameters))


@dataclass(frozen=True)
class Settings:
    """One training. batch: of a step, in `slots` parts that pass the network one by one.

    channels: of the levels, and in proportion of the heads.
    """

    epochs: float
    lr: float
    layer_decay: float
    drop_path: float
    weight_decay: float
    batch: int
    slots: int
    warmup_steps: int
    short_sides: Sequence[int]
    long_side: int
    channels: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch % self.slots:
            raise UsageError(f"--slots {self.slots} do not divide --batch {self.batch}")

    @property
    def images_per_slot(self) -> int:
        return self.batch // self.slots

    def with_warmup(self, steps: int) -> "Settings":
        return replace(self, warmup_steps=steps)

    def steps(self, images: int) -> int:
        return max(round(self.epochs * images / self.batch), 1)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step of so many: it rises evenly, then falls twice."""
        rising = min((step + 1) / self.warmup_steps, 1) if self.warmup_steps else 1
        fallen = sum(step >= round(share * steps) for share in DROPS)
        return self.lr * rising * 0.1**fallen
