"""Colour jitter in each crop's own order, grey, blur, solarisation and normalisation of a batch.

Three kernels over all crops: the mean that contrast needs, all colours, the blur along rows; the
last one blurs along columns, solarises and normalises. PyTorch takes about forty launches.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from poa_kernels import dispatch
from poa_kernels.language import Case, blocks, jit, tl

OPERATOR = "photometric"
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 as torchvision rounds it
SOLARIZE = 128 / 255
SOLARIZE_FROM = tl.constexpr(SOLARIZE)
RED, GREEN, BLUE = (tl.constexpr(share) for share in GREY)


@dataclass(frozen=True)
class Changes:
    """What happens to each of n crops; all tensors on the crops' device.

    factors (n, 4) float32 of brightness, contrast, saturation and hue; order (n, 4) int32 of
    these, -1: none; grey, solarize (n,) bool; sigma (n,) float32 of the blur, 0: none.
    """

    factors: Tensor
    order: Tensor
    grey: Tensor
    sigma: Tensor
    solarize: Tensor


def photometric(
    crops: Tensor, changes: Changes, *, taps: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """(n, 3, H, W) float32 from crops (n, 3, H, W) uint8. taps: of the blur, an odd number."""
    assert crops.dtype == torch.uint8 and taps % 2
    assert changes.order.dtype == torch.int32 and len(changes.order) == len(crops)
    if dispatch.choose(OPERATOR, changes.factors) == "reference":
        done = [_one(crops[i], changes, i, taps) for i in range(len(crops))]
        x = torch.stack(done) if done else crops.float()
        shift, scale = (x.new_tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        return (x - shift) / scale
    return _launch(crops, changes, taps // 2, mean, std)


def _one(crop: Tensor, changes: Changes, i: int, taps: int) -> Tensor:
    """Reference: one crop (3, H, W), one change after the other."""
    x = crop.float() / 255
    for which in changes.order[i].tolist():
        factor = changes.factors[i, which]
        if which == HUE:
            x = _turned(x, factor)
        elif which >= 0:
            other = (torch.zeros_like(x), _grey(x).mean(), _grey(x))[which]
            x = torch.lerp(other, x, factor).clamp(0, 1)
    if changes.grey[i]:
        x = _grey(x).expand_as(x)
    if changes.sigma[i] > 0:
        steps = torch.arange(taps, device=x.device) - taps // 2
        line = torch.softmax(-0.5 * (steps / changes.sigma[i]) ** 2, 0)
        x = F.pad(x[:, None], [taps // 2] * 4, mode="reflect")
        x = F.conv2d(F.conv2d(x, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))[:, 0]
    return torch.where(x >= SOLARIZE, 1 - x, x) if changes.solarize[i] else x


def _grey(x: Tensor) -> Tensor:
    return (x * x.new_tensor(GREY).view(3, 1, 1)).sum(0)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """The hue moved by a number of turns."""
    (r, g, b), top, span = x, x.amax(0), x.amax(0) - x.amin(0)
    divisor = torch.where(span == 0, 1, span)
    hue = torch.where(top == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor)
    sixths = torch.where(top == r, (g - b) / divisor, hue) + 6 * turns
    k = (sixths + sixths.new_tensor((5, 3, 1)).view(3, 1, 1)) % 6
    return (top - span * torch.minimum(k, 4 - k).clamp(0, 1)).clamp(0, 1)


def _launch(crops: Tensor, changes: Changes, half: int, mean: tuple, std: tuple) -> Tensor:
    crops, (n, _, height, width) = crops.contiguous(), crops.shape
    tile, pixels = dispatch.tiles(OPERATOR, changes.factors), height * width
    assert half < min(height, width), "the blur is wider than the crop"
    parts = blocks(pixels, tile["BP"])
    sums = torch.empty(n, parts, device=crops.device)
    x = torch.empty(crops.shape, device=crops.device)
    if n == 0:
        return x
    given = changes.factors, changes.order, changes.sigma
    factors, order, sigma = (tensor.contiguous() for tensor in given)
    _greys[(n, parts)](crops, factors, order, sums, pixels, parts, **tile)
    means = sums.sum(1) / pixels
    grey, solarize = changes.grey.to(torch.int32), changes.solarize.to(torch.int32)
    _colours[(n, parts)](crops, factors, order, means, grey, x, pixels, **tile)
    blurred, out = torch.empty_like(x), torch.empty_like(x)
    _blur_rows[(n * 3, parts)](x, sigma, blurred, height, width, HALF=half, **tile)
    normal = torch.tensor((*mean, *std), dtype=torch.float32).to(crops.device, non_blocking=True)
    _finish[(n * 3, parts)](
        x, blurred, sigma, solarize, normal, out, height, width, HALF=half, **tile
    )
    return out


@jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@jit
def _read(crops, crop, at, mask, pixels):
    start = crops + crop.to(tl.int64) * 3 * pixels + at
    r = tl.load(start, mask=mask, other=0).to(tl.float32)
    g = tl.load(start + pixels, mask=mask, other=0).to(tl.float32)
    b = tl.load(start + 2 * pixels, mask=mask, other=0).to(tl.float32)
    # rounded like PyTorch's: solarisation compares with a threshold
    return tl.div_rn(r, 255.0), tl.div_rn(g, 255.0), tl.div_rn(b, 255.0)


@jit
def _turn(sixths, top, span, place):
    k = sixths + place
    k -= 6.0 * tl.floor(k / 6.0)
    return _clamp(top - span * _clamp(tl.minimum(k, 4.0 - k)))


@jit
def _change(r, g, b, which, factor, mean):
    """One change of one crop; `which` and `factor` are scalars."""
    if which == 3:
        top, low = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
        span = top - low
        divisor = tl.where(span == 0.0, 1.0, span)
        hue = tl.where(top == g, 2.0 + (b - r) / divisor, 4.0 + (r - g) / divisor)
        sixths = tl.where(top == r, (g - b) / divisor, hue) + 6.0 * factor
        r = _turn(sixths, top, span, 5.0)
        g = _turn(sixths, top, span, 3.0)
        b = _turn(sixths, top, span, 1.0)
    elif which >= 0:
        other = (r * RED + g * GREEN + b * BLUE) * tl.where(which == 2, 1.0, 0.0)
        other += tl.where(which == 1, mean, 0.0)
        r = _clamp(other + factor * (r - other))
        g = _clamp(other + factor * (g - other))
        b = _clamp(other + factor * (b - other))
    return r, g, b


@jit
def _greys(crops, factors, order, sums, pixels, parts, BP: tl.constexpr):
    """Sums of grey as it is when contrast's turn comes."""
    crop, part = tl.program_id(0), tl.program_id(1)
    at = part * BP + tl.arange(0, BP)
    r, g, b = _read(crops, crop, at, at < pixels, pixels)
    waiting = 1
    for step in tl.static_range(4):
        which = tl.load(order + crop * 4 + step)
        if which == 1:
            waiting = 0
        if waiting == 1:
            factor = tl.load(factors + crop * 4 + tl.maximum(which, 0))
            r, g, b = _change(r, g, b, which, factor, 0.0)
    grey = tl.where(at < pixels, r * RED + g * GREEN + b * BLUE, 0.0)
    tl.store(sums + crop * parts + part, tl.sum(grey, 0))


@jit
def _colours(crops, factors, order, means, grey, out, pixels, BP: tl.constexpr):
    crop = tl.program_id(0)
    at = tl.program_id(1) * BP + tl.arange(0, BP)
    mask = at < pixels
    r, g, b = _read(crops, crop, at, mask, pixels)
    mean = tl.load(means + crop)
    for step in tl.static_range(4):
        which = tl.load(order + crop * 4 + step)
        factor = tl.load(factors + crop * 4 + tl.maximum(which, 0))
        r, g, b = _change(r, g, b, which, factor, mean)
    if tl.load(grey + crop) == 1:
        r = r * RED + g * GREEN + b * BLUE
        g = r
        b = r
    start = out + crop.to(tl.int64) * 3 * pixels + at
    tl.store(start, r, mask=mask)
    tl.store(start + pixels, g, mask=mask)
    tl.store(start + 2 * pixels, b, mask=mask)


@jit
def _mirrored(i, size):
    """Positions beyond an edge, reflected without repeating the edge."""
    i = tl.abs(i)
    return tl.where(i >= size, 2 * size - 2 - i, i)


@jit
def _blur_rows(x, sigma, out, height, width, HALF: tl.constexpr, BP: tl.constexpr):
    plane = tl.program_id(0)
    s = tl.load(sigma + plane // 3)
    if s > 0:
        at = tl.program_id(1) * BP + tl.arange(0, BP)
        mask = at < height * width
        start = x + plane.to(tl.int64) * height * width
        column, first = at % width, at - at % width
        total, weight = tl.zeros((BP,), tl.float32), 0.0
        for step in tl.static_range(-HALF, HALF + 1):
            w = tl.exp(-0.5 * (step / s) * (step / s))
            near = first + _mirrored(column + step, width)
            total += w * tl.load(start + near, mask=mask, other=0.0)
            weight += w
        to = out + plane.to(tl.int64) * height * width + at
        tl.store(to, total / weight, mask=mask)


@jit
def _finish(
    x, blurred, sigma, solarize, normal, out, height, width, HALF: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """Blur along columns where there is a blur, then solarise and normalise."""
    plane = tl.program_id(0)
    s = tl.load(sigma + plane // 3)
    at = tl.program_id(1) * BP + tl.arange(0, BP)
    mask = at < height * width
    start = plane.to(tl.int64) * height * width
    if s > 0:
        row, column = at // width, at % width
        total, weight = tl.zeros((BP,), tl.float32), 0.0
        for step in tl.static_range(-HALF, HALF + 1):
            w = tl.exp(-0.5 * (step / s) * (step / s))
            near = _mirrored(row + step, height) * width + column
            total += w * tl.load(blurred + start + near, mask=mask, other=0.0)
            weight += w
        value = total / weight
    else:
        value = tl.load(x + start + at, mask=mask, other=0.0)
    turned = (value >= SOLARIZE_FROM) & (tl.load(solarize + plane // 3) == 1)
    value = tl.where(turned, 1.0 - value, value)
    mean, std = tl.load(normal + plane % 3), tl.load(normal + 3 + plane % 3)
    tl.store(out + start + at, tl.div_rn(value - mean, std), mask=mask)


def cases(chip: str) -> Iterator[Case]:
    """Every kernel with the chip's tiles, for aot.py."""
    types = {"crops": "*u8"} | dict.fromkeys(("order", "grey", "solarize"), "*i32")
    types |= dict.fromkeys("factors means sums x blurred sigma normal out".split(), "*fp32")
    types |= dict.fromkeys(("pixels", "parts", "height", "width"), "i32")
    tile = dict(dispatch.entry(chip, OPERATOR)["tiles"])
    warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
    blur = tile | {"HALF": 4}
    kernels = {_greys: tile, _colours: tile, _blur_rows: blur, _finish: blur}
    for name, (kernel, constants) in zip(
        ("greys", "colours", "blur_rows", "finish"), kernels.items(), strict=True
    ):
        sixteens = ("pixels", "height", "width")
        yield Case(f"{OPERATOR}.{name}", kernel, types, constants, warps, stages, sixteens)
