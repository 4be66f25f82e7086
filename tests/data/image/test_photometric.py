"""Batched colour changes against torchvision, crop by crop."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from poa_ds.data.image import photometric
from poa_ds.data.image.photometric import (
    GLOBAL_1,
    GLOBAL_2,
    LOCAL,
    UNTOUCHED,
    Draw,
    Photometric,
    PhotometricSpec,
    apply,
    draw,
)
from tests.support.published import COLOURS

SPEC = COLOURS
CHANGES = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def noise(crops: int, size: int) -> Tensor:
    """(crops, 3, size, size + 2) uint8"""
    rng = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (crops, 3, size, size + 2), dtype=torch.uint8, generator=rng)


def by_torchvision(crop: Tensor, chosen: Draw, spec: PhotometricSpec) -> Tensor:
    x = crop.float() / 255
    for change in chosen.order:
        if change >= 0:
            x = CHANGES[change](x, chosen.factors[change])
    if chosen.grey:
        x = F.rgb_to_grayscale(x, 3)
    if chosen.sigma:
        x = F.gaussian_blur(x, [spec.blur_kernel] * 2, [chosen.sigma] * 2)
    if chosen.solarize:
        x = F.solarize(x, 128 / 255)
    return F.normalize(x, list(spec.mean), list(spec.std))


@pytest.mark.parametrize("size", [32, 16, 96])
@pytest.mark.parametrize("kernel", [3, 9])
def test_crops_are_those_of_torchvision(size: int, kernel: int) -> None:
    spec = replace(SPEC, grey=0.3, blur=(0.5, 0.5, 0.5), blur_kernel=kernel, solarize=0.3)
    rng = random.Random(size)
    crops = noise(24, size)
    crops[0], crops[1] = 0, 255
    crops[2, 1:] = crops[2, :1]  # grey from the start: the hue is undefined
    crops[3] = crops[3] // 128 * 255  # only corners of the colour cube
    draws = [draw(rng, spec, number % 3) for number in range(24)]
    found = apply(crops, Photometric.stack(draws), spec)
    expected = torch.stack([by_torchvision(c, d, spec) for c, d in zip(crops, draws, strict=True)])
    # float32 on [0, 1], divided by std 0.22: a few rounding errors
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 2e-5


@pytest.mark.parametrize("change", range(4))
def test_each_change_alone_is_that_of_torchvision(change: int) -> None:
    crops = noise(4, 20)
    for strength in (0.0, 0.1, 1.3) if change < 3 else (-0.5, -0.03, 0.0, 0.4):
        factors = tuple(strength if k == change else float("nan") for k in range(4))
        chosen = Draw(factors, (change, -1, -1, -1), grey=False, sigma=0.0, solarize=False)
        found = apply(crops, Photometric.stack([chosen] * 4), SPEC)
        for crop, own in zip(crops, found, strict=True):
            assert (by_torchvision(crop, chosen, SPEC) - own).abs().max() < 2e-5


def test_solarisation_starts_at_the_middle() -> None:
    crops = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    chosen = Draw((1.0,) * 4, UNTOUCHED, grey=False, sigma=0.0, solarize=True)
    spec = replace(SPEC, mean=(0.0,) * 3, std=(1.0,) * 3)
    found = apply(crops.contiguous(), Photometric.stack([chosen] * 2), spec)
    values = torch.arange(256)
    expected = torch.where(values >= 128, 255 - values, values) / 255
    assert (found[0, 0].flatten() - expected).abs().max() < 1e-6


def test_the_order_of_the_changes_counts() -> None:
    crops = noise(1, 8)
    results = [
        apply(
            crops,
            Photometric.stack([Draw((1.4, 0.6, 1.2, 0.1), order, False, 0.0, False)]),
            SPEC,
        )
        for order in photometric.ORDERS
    ]
    assert len({tuple(result.flatten().tolist()) for result in results}) == 24


def test_untouched_crops_are_only_normalised() -> None:
    crops = noise(3, 8)
    kept = crops.clone()
    still = Draw((1.4, 0.6, 1.2, 0.1), UNTOUCHED, grey=False, sigma=0.0, solarize=False)
    found = apply(crops, Photometric.stack([still] * 3), SPEC)
    assert torch.equal(found, F.normalize(crops / 255, list(SPEC.mean), list(SPEC.std)))
    assert torch.equal(crops, kept)


def test_no_crops_at_all() -> None:
    empty = torch.empty(0, 3, 16, 16, dtype=torch.uint8)
    assert apply(empty, Photometric.stack([]), SPEC).shape == empty.shape


def test_draws_have_the_asked_frequencies_and_ranges() -> None:
    rng, n = random.Random(0), 4000
    for kind, blur, solarize in ((GLOBAL_1, 1.0, 0.0), (GLOBAL_2, 0.1, 0.2), (LOCAL, 0.5, 0.0)):
        draws = [draw(rng, SPEC, kind) for _ in range(n)]
        for found, asked in (
            ([d.order != UNTOUCHED for d in draws], 0.8),
            ([d.grey for d in draws], 0.2),
            ([d.sigma > 0 for d in draws], blur),
            ([d.solarize for d in draws], solarize),
        ):
            # five standard errors of a share of 4000
            assert abs(sum(found) / n - asked) <= 5 * (asked * (1 - asked) / n) ** 0.5
        sigma = torch.tensor([d.sigma for d in draws if d.sigma])
        assert 0.1 <= sigma.min() and sigma.max() <= 2.0 and abs(sigma.mean() - 1.05) < 0.14
        factors = torch.tensor([d.factors for d in draws])
        for column, (low, high) in enumerate(((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1))):
            assert low <= factors[:, column].min() < low + 0.02
            assert high - 0.02 < factors[:, column].max() <= high
        orders = {d.order for d in draws} - {UNTOUCHED}
        assert len(orders) == 24


def test_every_draw_takes_the_same_number_of_random_numbers() -> None:
    states = set()
    for spec in (SPEC, replace(SPEC, jitter=0.0, grey=0.0, blur=(0.0,) * 3, solarize=0.0)):
        for kind in (GLOBAL_1, GLOBAL_2, LOCAL):
            rng = random.Random(5)
            draw(rng, spec, kind)
            states.add(rng.getstate())
    assert len(states) == 1


def test_a_strength_above_one_stays_positive() -> None:
    spec = replace(SPEC, brightness=1.5)
    factors = [draw(random.Random(seed), spec, LOCAL).factors[0] for seed in range(500)]
    assert 0 <= min(factors) < 0.05 and 2.4 < max(factors) <= 2.5


@pytest.mark.gpu
def test_the_device_gives_the_same_as_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = random.Random(0)
    crops = noise(30, 96)
    params = Photometric.stack([draw(rng, SPEC, number % 3) for number in range(30)])
    there = apply(crops.cuda(), params, SPEC).cpu()
    # a hue next to a border of its sixths may fall on its other side, where the formulas meet
    assert (there - apply(crops, params, SPEC)).abs().max() < 5e-5
