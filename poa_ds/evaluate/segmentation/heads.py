"""Linear heads on maps of features, several learning rates of a size at once.

Each is a BatchNorm and a 1x1 convolution, learnt by AdamW. Features are frozen, so that the norm's
mean and variance have no gradient, and are the same for all heads of a size.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.evaluate.segmentation.masks import IGNORED

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
INIT, EPS, MOMENTUM = 0.01, 1e-5, 0.1  # of weights; of the norm, as torch's
WEIGHT_DECAY, BETAS, ADAM_EPS = 1e-3, (0.9, 0.999), 1e-8
WARM_UP, WARM_FROM = 1500 / 40_000, 1e-6  # a share of the steps; of the rate
RATE = 1e-3  # DINOv3's
Decay = Literal["cosine", "linear"]
DECAYS: tuple[Decay, ...] = ("cosine", "linear")
LEARNT = ("scale", "shift", "weight", "bias")


@dataclass(frozen=True)
class Schedule:
    """How a head learns. warm: the first steps, in which the rate rises.

    Then it falls to 0 by a cosine, or "linear" from the first step on, as mmsegmentation's `poly`
    of power 1 does, by which the warm-up is multiplied.
    """

    steps: int
    warm: int
    decay: Decay = "cosine"
    weight_decay: float = WEIGHT_DECAY

    @classmethod
    def of(cls, steps: int) -> "Schedule":
        """DINOv3's."""
        return cls(steps, round(WARM_UP * steps))

    def share(self, step: int) -> float:
        """The part of its rate with which a head learns in this step."""
        rise = WARM_FROM + (1 - WARM_FROM) * step / self.warm if step < self.warm else 1.0
        if self.decay == "linear":
            return rise * (1 - step / self.steps)
        if step < self.warm:
            return rise
        return (1 + math.cos(math.pi * (step - self.warm) / (self.steps - self.warm))) / 2


def upsampled(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """(n, K, rows, columns) -> (n, K, *size)."""
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


class Heads:
    """The heads of a size: scale, shift (R, C), weight (R, K, C), bias (R, K), AdamW's moments.

    mean, variance (C,): the running ones. steps: that were learnt.
    """

    def __init__(
        self,
        name: str,
        width: int,
        classes: int,
        rates: Sequence[float],
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        key = hashlib.sha256(f"{name}/{seed}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        drawn = INIT * torch.randn(classes, width, generator=generator)  # the same for all rates
        self.name, self.classes, self.steps = name, classes, 0
        self.rates = torch.tensor(rates, device=device)
        many = len(rates)
        self.learnt = {
            "scale": torch.ones(many, width, device=device),
            "shift": torch.zeros(many, width, device=device),
            "weight": drawn.to(device).expand(many, -1, -1).clone(),
            "bias": torch.zeros(many, classes, device=device),
        }
        self.first = {key: torch.zeros_like(x) for key, x in self.learnt.items()}
        self.second = {key: torch.zeros_like(x) for key, x in self.learnt.items()}
        self.mean = torch.zeros(width, device=device)
        self.variance = torch.ones(width, device=device)

    def scores(self, features: Tensor) -> Tensor:
        """(n, R, K, rows, columns) of maps (n, rows, columns, C), by the running mean."""
        normalised = (features - self.mean) * (self.variance + EPS).rsqrt()
        return _scores(normalised, *(self.learnt[key] for key in LEARNT))

    def see(self, sums: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """(mean, 1 / deviation) of a batch: (2, C) sums of features and squares, in float64.

        places: at how many, on all ranks. The running ones move.
        """
        mean, square = sums / places
        variance = (square - mean * mean).clamp(min=0)
        unbiased = variance * (places / max(places - 1, 1))
        self.mean.lerp_(mean.to(self.mean), MOMENTUM)
        self.variance.lerp_(unbiased.to(self.variance), MOMENTUM)
        return mean.to(self.mean), (variance + EPS).rsqrt().to(self.mean)

    def gradients(self, normalised: Tensor, masks: Tensor, pixels: int) -> Tensor:
        """Of the cross-entropy of maps (n, rows, columns, C), per pixel of `pixels`; float64, flat.

        masks (n, S, S) int64: what is IGNORED counts nothing. One head's scores of all pixels at a
        time, which are the most of the memory.
        """
        with torch.enable_grad():
            leaves = [self.learnt[key].detach().requires_grad_() for key in LEARNT]
            scores = _scores(normalised, *leaves)
            near = scores.detach().requires_grad_()
            for number in range(len(self.rates)):
                fine = upsampled(near[:, number], tuple(masks.shape[-2:]))
                loss = F.cross_entropy(fine, masks, ignore_index=IGNORED, reduction="sum")
                (loss / pixels).backward()
            scores.backward(near.grad)
        return torch.cat([leaf.grad.double().flatten() for leaf in leaves])

    @property
    def numbers(self) -> int:
        """How many are learnt."""
        return sum(x.numel() for x in self.learnt.values())

    def learn(self, gradients: Tensor, part: float, weight_decay: float = WEIGHT_DECAY) -> None:
        """A step of AdamW by what `gradients` gives, summed; part: of the rates."""
        self.steps += 1
        sizes = [x.numel() for x in self.learnt.values()]
        for key, flat in zip(LEARNT, gradients.split(sizes), strict=True):
            x, first, second = self.learnt[key], self.first[key], self.second[key]
            gradient = flat.view_as(x).to(x)
            rates = part * self.rates.view(-1, *[1] * (x.ndim - 1))
            x.mul_(1 - rates * weight_decay)
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            mean = first / (1 - BETAS[0] ** self.steps)
            root = (second / (1 - BETAS[1] ** self.steps)).sqrt() + ADAM_EPS
            x.sub_(rates * mean / root)

    def finite(self) -> bool:
        """Whether all that was learnt is."""
        return all(bool(x.isfinite().all()) for x in (*self.learnt.values(), self.variance))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, and `load` takes."""
        parts = {"learnt": self.learnt, "first": self.first, "second": self.second}
        named = {f"{part}_{key}": x for part, of in parts.items() for key, x in of.items()}
        steps = torch.tensor(self.steps)
        return named | {"mean": self.mean, "variance": self.variance, "steps": steps}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, own in self.state().items():
            own.copy_(state[name])
        self.steps = int(state["steps"])


def _scores(
    normalised: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """(n, R, K, rows, columns): norm and convolution of all heads in one product."""
    joined = (weight * scale[:, None]).flatten(0, 1)
    constant = bias + torch.einsum("rkc,rc->rk", weight, shift)
    flat = normalised @ joined.T + constant.flatten()
    return flat.unflatten(-1, bias.shape).permute(0, 3, 4, 1, 2)


def bytes_of(width: int, classes: int, rates: int) -> int:
    """Of what is learnt, its moments, and gradients in float64 with their sum."""
    return (3 * 4 + 2 * 8) * rates * (classes * width + 2 * width + classes)
