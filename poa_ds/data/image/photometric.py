"""Colour jitter, grey, blur, solarisation and normalisation of whole batches, on any device.

Every crop has its own parameters, drawn on the CPU from its image's own generator; the arithmetic
is that of torchvision's functions on float images.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from poa_ds.system.transfer import send
from poa_kernels import dispatch
from poa_kernels.photometric import OPERATOR, Changes, photometric

GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 as torchvision rounds it
SOLARIZE_FROM = 128 / 255
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = tuple(itertools.permutations(range(4)))
UNTOUCHED = (-1,) * 4  # the order of a crop without jitter
GLOBAL_1, GLOBAL_2, LOCAL = range(3)  # kinds of crops: they differ in blur and solarisation


@dataclass(frozen=True)
class PhotometricSpec:
    """Probabilities and ranges; `blur` has one probability for each kind of crop."""

    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grey: float
    blur: tuple[float, float, float]
    blur_kernel: int
    blur_sigma: tuple[float, float]
    solarize: float  # of the second global crop only
    mean: tuple[float, ...]  # of each channel
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        assert self.blur_kernel % 2, f"blur_kernel {self.blur_kernel} has no middle"


@dataclass(frozen=True)
class Draw:
    """The parameters of one crop."""

    factors: tuple[float, float, float, float]  # brightness, contrast, saturation, hue
    order: tuple[int, ...]  # of the four changes; UNTOUCHED: no jitter
    grey: bool
    sigma: float  # of the blur in pixels; 0: none
    solarize: bool


@dataclass(frozen=True)
class Photometric:
    """The parameters of n crops, on the CPU, where apply() reads them without waiting."""

    factors: Tensor  # (n, 4) float32
    order: Tensor  # (n, 4) int64
    grey: Tensor  # (n,) bool
    sigma: Tensor  # (n,) float32
    solarize: Tensor  # (n,) bool

    @classmethod
    def stack(cls, draws: Sequence[Draw]) -> Self:
        """One row per draw."""
        return cls(
            torch.tensor([draw.factors for draw in draws], dtype=torch.float32).view(-1, 4),
            torch.tensor([draw.order for draw in draws], dtype=torch.int64).view(-1, 4),
            torch.tensor([draw.grey for draw in draws], dtype=torch.bool),
            torch.tensor([draw.sigma for draw in draws], dtype=torch.float32),
            torch.tensor([draw.solarize for draw in draws], dtype=torch.bool),
        )

    def __len__(self) -> int:
        return len(self.grey)


def draw(rng: random.Random, spec: PhotometricSpec, kind: int) -> Draw:
    """The parameters of one crop of a kind; takes the same number of random numbers each time."""
    jitter, b, c, s, h, order, grey, blur, sigma, solarize = (rng.random() for _ in range(10))
    low, high = spec.blur_sigma
    return Draw(
        factors=(
            _factor(spec.brightness, b),
            _factor(spec.contrast, c),
            _factor(spec.saturation, s),
            spec.hue * (2 * h - 1),
        ),
        order=ORDERS[int(order * len(ORDERS))] if jitter < spec.jitter else UNTOUCHED,
        grey=grey < spec.grey,
        sigma=low + (high - low) * sigma if blur < spec.blur[kind] else 0.0,
        solarize=kind == GLOBAL_2 and solarize < spec.solarize,
    )


def _factor(strength: float, uniform: float) -> float:
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * uniform


def apply(crops: Tensor, params: Photometric, spec: PhotometricSpec) -> Tensor:
    """(n, C, S, S) float32, normalised, from crops of 0 to 255; nothing waits for the device.

    crops: uint8; float32 where they are measurements (values.py). Without three colours there is
    brightness, a contrast around each channel's mean, blur and solarisation.
    """
    assert len(crops) == len(params)
    colours = crops.shape[1] == len(GREY)
    usual = colours and crops.dtype == torch.uint8
    if usual and dispatch.choose(OPERATOR, torch.empty(0, device=crops.device)) == "triton":
        kinds = (params.factors, params.order.int(), params.grey, params.sigma, params.solarize)
        changes = Changes(*[tensor.to(crops.device, non_blocking=True) for tensor in kinds])
        return photometric(crops, changes, taps=spec.blur_kernel, mean=spec.mean, std=spec.std)
    x = crops.to(torch.float32, copy=True).div_(255)
    selected = _Selection(params, spec, x.device)
    for step in range(4):
        for change in range(4) if colours else (BRIGHTNESS, CONTRAST):
            rows = selected.rows[step, change]
            _replace(x, rows, _CHANGES[change], selected.factors[rows, change])
    _replace(x, selected.rows["grey"], _grey)
    rows = selected.rows["blur"]
    _replace(x, rows, _blur, selected.sigma[rows], spec.blur_kernel)
    _replace(x, selected.rows["solarize"], _solarize)
    return x.sub_(selected.mean).div_(selected.std)


def _replace(x: Tensor, rows: Tensor, function: Callable[..., Tensor], *arguments: object) -> None:
    """Puts function(the rows, *arguments) in the place of some rows of x."""
    if len(rows):
        y = x.index_select(0, rows)
        x.index_copy_(0, rows, function(y, *arguments).expand_as(y))


class _Selection:
    """Which crops each operation touches and with what numbers: found on the CPU, sent at once."""

    def __init__(self, params: Photometric, spec: PhotometricSpec, device: torch.device) -> None:
        parts, n = dict(_subsets(params)), len(params)
        pieces = send(torch.cat(list(parts.values())), device)
        self.rows = dict(zip(parts, pieces.split([*map(len, parts.values())]), strict=True))
        colours = torch.tensor((*spec.mean, *spec.std), dtype=torch.float32)
        table = send(torch.cat((params.factors.flatten(), params.sigma, colours)), device)
        self.factors, self.sigma = table[: 4 * n].view(n, 4), table[4 * n : 5 * n]
        self.mean, self.std = table[5 * n :].view(2, 1, -1, 1, 1)


def _subsets(params: Photometric) -> Iterator[tuple[tuple[int, int] | str, Tensor]]:
    for step in range(4):
        for change in range(4):
            yield (step, change), (params.order[:, step] == change).nonzero().squeeze(1)
    yield "grey", params.grey.nonzero().squeeze(1)
    yield "blur", (params.sigma > 0).nonzero().squeeze(1)
    yield "solarize", params.solarize.nonzero().squeeze(1)


def _grey(x: Tensor) -> Tensor:
    """(n, 1, H, W)"""
    r, g, b = x.unbind(1)
    return (r * GREY[0] + g * GREY[1] + b * GREY[2]).unsqueeze(1)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(x) if x.shape[1] == len(GREY) else x
    mean = grey.mean((2, 3), keepdim=True)
    return torch.lerp(mean, x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x), x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Hue moved by `shift` turns: RGB -> HSV -> RGB."""
    r, g, b = x.unbind(1)
    value, span = x.amax(1), x.amax(1) - x.amin(1)
    divisor = torch.where(span == 0, 1, span)
    hue = torch.where(
        value == r,
        (g - b) / divisor,
        torch.where(value == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor),
    )
    sixths = (hue + 6 * shift.view(-1, 1, 1)).unsqueeze(1)
    turn = torch.arange(5, 0, -2, dtype=sixths.dtype, device=sixths.device)  # red, green, blue
    k = (sixths + turn.view(1, 3, 1, 1)) % 6
    ramp = torch.minimum(k, 4 - k).clamp_(0, 1)
    return (value.unsqueeze(1) - span.unsqueeze(1) * ramp).clamp_(0, 1)


_CHANGES = (_brightness, _contrast, _saturation, _hue)


def _blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Separable Gaussian with mirrored edges, one sigma per crop."""
    n, channels, _, _ = x.shape
    half = kernel // 2
    taps = torch.arange(-half, half + 1, device=x.device, dtype=x.dtype)
    weights = torch.softmax(-0.5 * (taps / sigma.view(-1, 1)) ** 2, dim=1)
    weights = repeat(weights, "n taps -> (n c) taps", c=channels)
    x = F.pad(rearrange(x, "n c h w -> 1 (n c) h w"), [half] * 4, mode="reflect")
    for pattern in ("planes taps -> planes 1 1 taps", "planes taps -> planes 1 taps 1"):
        x = F.conv2d(x, rearrange(weights, pattern), groups=n * channels)
    return rearrange(x, "1 (n c) h w -> n c h w", n=n)


def _solarize(x: Tensor) -> Tensor:
    return torch.where(x >= SOLARIZE_FROM, 1 - x, x)
