"""Block masks against the published generator, draw by draw."""

import json
import random

import numpy as np
import pytest
import torch

from poa_ds.data.image.masks import batch_masks, block_mask
from tests.conftest import shared

CASES = "golden/09_mask_knn"


def test_masks_are_the_published_ones_exactly() -> None:
    golden = np.load(shared(CASES) / "masks.npz")
    for name in golden.files:  # e.g. vit14/seed0/n19
        _, seed, count = name.split("/")
        rng = random.Random(int(seed.removeprefix("seed")))
        for expected in golden[name]:
            mask = block_mask(*expected.shape, int(count.removeprefix("n")), rng)
            assert np.array_equal(mask, expected), name


@pytest.mark.parametrize("name", ["vit", "swin", "tiny"])
def test_masks_of_a_batch_are_the_published_ones_exactly(name: str) -> None:
    case = json.loads((shared(CASES) / "case.json").read_text())[f"collate_{name}"]
    golden = np.load(shared(CASES) / "collate.npz")
    masks = batch_masks(
        2 * case["B_images"],
        case["grid"],
        case["grid"],
        probability=case["mask_probability"],
        ratio=tuple(case["mask_ratio"]),
        rng=random.Random(case["seed"]),
    )
    assert masks.dtype == torch.bool
    assert np.array_equal(masks.numpy(), golden[f"{name}/collated_masks"])


def test_masks_never_hide_more_than_wished() -> None:
    rng = random.Random(3)
    for rows, columns in ((4, 4), (14, 14), (5, 9), (2, 2)):
        for count in range(rows * columns):
            assert block_mask(rows, columns, count, rng).sum() <= count


def test_masks_of_a_large_grid_are_mostly_exact() -> None:
    rng = random.Random(0)
    exact = [block_mask(14, 14, 58, rng).sum() == 58 for _ in range(300)]
    assert 0.88 < np.mean(exact) < 0.97  # 90-94 % in the published code


def test_the_share_of_masked_crops_and_patches() -> None:
    rng = random.Random(0)
    draw = [batch_masks(64, 14, 14, probability=0.5, ratio=(0.1, 0.5), rng=rng) for _ in range(20)]
    masks = torch.stack(draw).float().mean(2)
    assert ((masks > 0).sum(1) == 32).all()
    chosen = masks[masks > 0]
    assert 0.08 < chosen.min() and chosen.max() <= 0.5
    assert abs(chosen.mean() - 0.3) < 0.01
    # the masked crops lie anywhere, not at the front
    assert abs((masks > 0).float().mean(0)[:32].mean() - 0.5) < 0.1


def test_no_mask_at_all() -> None:
    masks = batch_masks(6, 4, 4, probability=0.0, ratio=(0.1, 0.5), rng=random.Random(0))
    assert masks.shape == (6, 16) and not masks.any()
