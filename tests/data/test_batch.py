"""Batches: crop-major crops, masks as lists, colours applied later."""

import json
import random

import numpy as np
import pytest
import torch

from poa_ds.data.batch import Batch, Sample, collate, mask_lists
from poa_ds.data.image.masks import batch_masks
from poa_ds.data.image.photometric import Photometric, apply, draw
from poa_ds.data.image.views import Views
from tests.conftest import shared
from tests.support.published import COLOURS

SPEC = COLOURS


def make_samples(images: int, local_count: int, size: int = 16) -> list[Sample]:
    rng, crops = random.Random(0), torch.Generator().manual_seed(0)
    samples = []
    for number in range(images):
        draws = [draw(rng, SPEC, min(crop, 2)) for crop in range(2 + local_count)]
        pixels = [
            torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=crops)
            for count, side in ((2, size), (local_count, size // 2))
        ]
        samples.append(Sample(Views(*pixels), draws, 100 + number, number % 3))
    return samples


def make_masks(crops: int) -> torch.Tensor:
    return batch_masks(crops, 4, 4, probability=0.5, ratio=(0.1, 0.5), rng=random.Random(1))


@pytest.mark.parametrize("name", ["vit", "swin", "tiny"])
def test_mask_lists_are_the_published_ones(name: str) -> None:
    golden = np.load(shared("golden/09_mask_knn") / "collate.npz")
    indices, weights = mask_lists(torch.from_numpy(golden[f"{name}/collated_masks"]))
    assert indices.dtype == torch.int64 and weights.dtype == torch.float32
    assert np.array_equal(indices, golden[f"{name}/mask_indices_list"])
    assert np.array_equal(weights, golden[f"{name}/masks_weight"])


@pytest.mark.parametrize("name", ["vit", "tiny"])
def test_crops_are_stacked_as_the_published_code_does(name: str) -> None:
    """Its crops are constant: 10 * image + crop, local ones 100 * image + crop."""
    folder = shared("golden/09_mask_knn")
    images = json.loads((folder / "case.json").read_text())[f"collate_{name}"]["B_images"]
    golden = np.load(folder / "collate.npz")
    local = len(golden[f"{name}/collated_local_crops"]) // images
    draws = make_samples(1, local)[0].draws
    samples = [
        Sample(
            Views(
                torch.stack([torch.full((3, 2, 2), 10.0 * i + c) for c in range(2)]),
                torch.stack([torch.full((3, 1, 1), 100.0 * i + c) for c in range(local)]),
            ),
            draws,
            i,
            -1,
        )
        for i in range(images)
    ]
    batch = collate(samples, make_masks(2 * images), step=0, slot=0)
    assert np.array_equal(batch.global_crops, golden[f"{name}/collated_global_crops"])
    assert np.array_equal(batch.local_crops, golden[f"{name}/collated_local_crops"])


def test_parameters_follow_their_crops() -> None:
    samples = make_samples(5, 3)
    batch = collate(samples, make_masks(10), step=4, slot=2, bad=[("a.tar", "k", "cut")])
    after = batch.augmented(SPEC)
    for b, sample in enumerate(samples):
        for c, chosen in enumerate(sample.draws):
            whole = c < 2
            crop = sample.views.global_crops[c] if whole else sample.views.local_crops[c - 2]
            alone = apply(crop[None], Photometric.stack([chosen]), SPEC)[0]
            found = after.global_crops[c * 5 + b] if whole else after.local_crops[(c - 2) * 5 + b]
            # a batch is convolved in another order of additions than a single crop
            assert (found - alone).abs().max() < 1e-5
    assert (batch.step, batch.slot, batch.size) == (4, 2, 5)
    assert batch.bad == (("a.tar", "k", "cut"),) == after.bad
    assert batch.positions.tolist() == [100, 101, 102, 103, 104]
    assert batch.labels.tolist() == [0, 1, 2, 0, 1]
    assert batch.global_crops.dtype == torch.uint8 and after.global_crops.dtype == torch.float32


def test_weights_of_a_crop_sum_to_one() -> None:
    masks = make_masks(12)
    indices, weights = mask_lists(masks)
    sums = torch.zeros(12).index_add_(0, indices // 16, weights)
    assert torch.allclose(sums, masks.any(1).float())
    assert masks.flatten()[indices].all() and len(indices) == masks.sum()


def test_a_batch_made_by_hand_needs_no_parameters() -> None:
    masks = make_masks(4)
    batch = Batch.of(torch.randn(4, 3, 16, 16), torch.randn(6, 3, 8, 8), masks, step=3)
    assert batch.size == 2 and batch.step == 3 and batch.augmented(SPEC) is batch
    assert torch.equal(batch.mask_indices, masks.flatten().nonzero()[:, 0])


def test_a_batch_moves_as_a_whole() -> None:
    batch = collate(make_samples(2, 1), make_masks(4), step=0, slot=0)
    moved = batch.to("meta")
    for name in ("global_crops", "local_crops", "masks", "mask_indices", "mask_weights", "labels"):
        assert getattr(moved, name).is_meta and not getattr(batch, name).is_meta
    assert moved.global_photometric is batch.global_photometric  # read on the CPU


def test_a_batch_without_local_crops() -> None:
    batch = collate(make_samples(3, 0), make_masks(6), step=0, slot=0).augmented(SPEC)
    assert batch.local_crops.shape == (0, 3, 8, 8) and batch.size == 3


def test_a_batch_without_any_mask() -> None:
    batch = Batch.of(torch.zeros(4, 3, 8, 8), torch.zeros(0, 3, 4, 4), torch.zeros(4, 16).bool())
    assert batch.mask_indices.shape == batch.mask_weights.shape == (0,)
