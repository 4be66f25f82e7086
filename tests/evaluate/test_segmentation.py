"""Segmentation's parts: heads against torch's own, counts against a slow loop and scikit-learn."""

import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import jaccard_score
from torch import Tensor, nn

from poa_ds.evaluate.segmentation import heads as of_heads
from poa_ds.evaluate.segmentation import training as of_training
from poa_ds.evaluate.segmentation import windows
from poa_ds.evaluate.segmentation.crops import Draw, random_pair, resized
from poa_ds.evaluate.segmentation.heads import Heads, Schedule, upsampled
from poa_ds.evaluate.segmentation.maps import maps
from poa_ds.evaluate.segmentation.masks import IGNORED
from poa_ds.evaluate.segmentation.scores import aacc, counted, errors, macc, majority, miou
from poa_ds.evaluate.segmentation.training import Training
from poa_ds.recipe import load
from poa_ds.recipe.backbone import backbone

CPU = torch.device("cpu")
WIDTH, CLASSES, SIDE, CROP, STEPS = 6, 5, 3, 12, 20
RATES = (1e-3, 1e-2)


def batches(count: int = STEPS, images: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Maps (n, SIDE, SIDE, WIDTH), some channels far from 0, and masks with ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        x = torch.randn(images, SIDE, SIDE, WIDTH, generator=generator)
        x = x * torch.arange(1, WIDTH + 1) + 3
        mask = torch.randint(IGNORED, CLASSES, (images, CROP, CROP), generator=generator)
        found.append((x, mask))
    return found


def trained(of: list[tuple[Tensor, Tensor]], block: int) -> Heads:
    """Heads that have learnt these batches in blocks of so many images, of a network x -> x."""
    heads = Heads("32x2", WIDTH, CLASSES, RATES, seed=3, device="cpu")
    training = Training([heads], lambda x: [x], Schedule.of(len(of)), CPU)
    for step, (x, mask) in enumerate(of):
        training.learn(step, list(zip(x.split(block), mask.short().split(block), strict=True)))
    return heads


def test_heads_learn_what_torch_s_own_layers_and_optimizer_learn() -> None:
    """float32 sums in another order: 1e-5 of weights that moved by 0.1."""
    own = trained(batches(), 1)
    start = Heads("32x2", WIDTH, CLASSES, RATES, seed=3, device="cpu")
    for number, rate in enumerate(RATES):
        norm, layer = nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, CLASSES, 1)
        layer.weight.data = start.learnt["weight"][number][:, :, None, None].clone()
        layer.bias.data.zero_()
        parameters = [*norm.parameters(), *layer.parameters()]
        adam = torch.optim.AdamW(parameters, rate, weight_decay=of_heads.WEIGHT_DECAY)
        for step, (x, mask) in enumerate(batches()):
            adam.param_groups[0]["lr"] = rate * Schedule.of(STEPS).share(step)
            adam.zero_grad()
            scores = layer(norm(x.permute(0, 3, 1, 2)))
            fine = F.interpolate(scores, (CROP, CROP), mode="bilinear")
            F.cross_entropy(fine, mask, ignore_index=IGNORED).backward()
            adam.step()
        wanted = {"scale": norm.weight, "shift": norm.bias, "bias": layer.bias}
        wanted |= {"weight": layer.weight[:, :, 0, 0]}
        for name, x in wanted.items():
            torch.testing.assert_close(own.learnt[name][number], x.data, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(own.mean, norm.running_mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own.variance, norm.running_var, atol=1e-4, rtol=1e-5)
        norm.eval()
        x = batches()[0][0]
        found = own.scores(x)[:, number]
        torch.testing.assert_close(found, layer(norm(x.permute(0, 3, 1, 2))), atol=1e-4, rtol=1e-4)
    assert (own.learnt["weight"] - start.learnt["weight"]).abs().max() > 0.05


def test_any_blocks_and_any_memory_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(batches(), 4).state()
    blocks = trained(batches(), 1).state()
    monkeypatch.setattr(of_training, "BYTES", 3 * 4 * CLASSES * CROP * CROP)  # 3 images, then 1
    for name, x in trained(batches(), 2).state().items():
        assert torch.equal(whole[name], blocks[name])
        torch.testing.assert_close(x, whole[name], atol=1e-5, rtol=1e-4)


def test_what_is_ignored_changes_neither_loss_nor_gradient() -> None:
    """Other scores there, and other images that are ignored as a whole."""
    heads = Heads("32x2", WIDTH, CLASSES, RATES, seed=3, device="cpu")
    x, mask = batches(1)[0]
    mask[0] = IGNORED
    pixels = int((mask != IGNORED).sum())
    whole = heads.gradients(x, mask, pixels)
    torch.testing.assert_close(heads.gradients(x[1:], mask[1:], pixels), whole)
    x[0] *= -7
    assert torch.equal(heads.gradients(x, mask, pixels), whole)
    assert not heads.gradients(x[:1], mask[:1], 1).any()
    x[1] *= -7  # and what is not does
    assert not torch.allclose(heads.gradients(x, mask, pixels), whole)


def test_a_batch_without_any_class_moves_no_weight_by_gradients() -> None:
    x, mask = batches(1)[0]
    heads = trained([(x, torch.full_like(mask, IGNORED))], 2)
    assert heads.finite() and not heads.first["weight"].any()


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    shares = [Schedule.of(400).share(step) for step in range(401)]
    assert shares[0] == of_heads.WARM_FROM and shares[15] == 1 and shares[400] < 1e-12
    assert shares[:16] == sorted(shares[:16]) and shares[15:] == sorted(shares[15:], reverse=True)
    assert shares[207] == pytest.approx((1 + np.cos(np.pi * 192 / 385)) / 2)


def guesses(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    """(predicted, true): class 3 nowhere, 4 predicted alone, some pixels ignored."""
    rng = np.random.default_rng(0)
    return [
        (
            torch.from_numpy(rng.choice([0, 1, 2, 4], (9, 7))),
            torch.from_numpy(rng.integers(-1, 3, (9, 7))),
        )
        for _ in range(count)
    ]


def test_counts_and_means_are_those_of_a_slow_loop_and_of_scikit_learn() -> None:
    found = torch.stack([counted(*pair, CLASSES) for pair in guesses()])
    slow = np.zeros((3, CLASSES), np.int64)
    for predicted, true in guesses():
        for p, t in zip(predicted.flatten().tolist(), true.flatten().tolist(), strict=True):
            if t >= 0:
                slow[0, t] += p == t
                slow[1, p] += 1
                slow[2, t] += 1
    assert found.sum(0).tolist() == slow.tolist()
    flat = [torch.cat([x.flatten() for x in of]) for of in zip(*guesses(), strict=True)]
    known = flat[1] >= 0
    predicted, true = (x[known].numpy() for x in flat)
    each = jaccard_score(true, predicted, average=None, labels=[0, 1, 2, 4])  # 3 occurs nowhere
    assert each[-1] == 0
    assert float(miou(found.sum(0))) == pytest.approx(100 * each.mean(), abs=1e-12)
    assert float(aacc(found.sum(0))) == pytest.approx(100 * (predicted == true).mean())
    recall = [(predicted[true == k] == k).mean() for k in (0, 1, 2)]  # 4 is not there
    assert float(macc(found.sum(0))) == pytest.approx(100 * np.mean(recall))


def test_errors_are_those_of_images_drawn_anew() -> None:
    """aAcc of images of equal size: the deviation of their mean; 1,000 draws are good to 3 %."""
    counts = torch.stack([counted(*pair, CLASSES) for pair in guesses(60)])
    counts[:, 2, 0] += 100 - counts[:, 2].sum(1)
    shares = 100 * counts[:, 0].sum(1).double() / 100
    expected = 1.96 * float(shares.std(correction=0)) / 60**0.5
    found = errors(counts, seed=1)
    assert found["aacc"] == pytest.approx(expected, rel=0.12)
    assert found == errors(counts, seed=1) and 0 < found["miou"] < 20
    assert errors(counts[:1], seed=0)["miou"] is None  # one image says nothing of others


def test_the_majority_is_right_of_one_class_alone() -> None:
    train, val = torch.tensor([5, 9, 1, 0]), torch.tensor([10, 30, 0, 60])
    assert majority(train, val) == pytest.approx(30 / 3)  # of three that are there


def test_one_window_is_the_whole_image() -> None:
    scores = torch.randn(1, CLASSES, 4, 4, generator=torch.Generator().manual_seed(1))
    where = windows.places(64, 64, 64, 42)
    assert where == [(0, 0)]
    found = windows.predicted(scores, where, crop=64, size=(64, 64), true_size=(64, 64))
    assert torch.equal(found, upsampled(scores, (64, 64))[0].argmax(0))


@pytest.mark.parametrize("memory", [windows.BYTES, 1])
def test_windows_are_the_mean_of_their_scores(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow loop over pixels; memory: all classes at once, or one at a time."""
    monkeypatch.setattr(windows, "BYTES", memory)
    height, width, crop = 50, 40, 32
    where = windows.places(height, width, crop, 20)
    assert where == [(0, 0), (0, 8), (18, 0), (18, 8)]
    scores = torch.randn(4, CLASSES, 4, 4, generator=torch.Generator().manual_seed(1))
    found = windows.predicted(scores, where, crop=crop, size=(50, 36), true_size=(50, 36))
    fine = upsampled(scores, (crop, crop))
    for y in range(height):
        for x in range(36):
            over = [
                fine[n, :, y - top, x - left]
                for n, (top, left) in enumerate(where)
                if 0 <= y - top < crop and 0 <= x - left < crop
            ]
            assert found[y, x] == torch.stack(over).mean(0).argmax()
    same = scores.new_zeros(4, CLASSES, 4, 4)
    same[:, 2] = 1
    found = windows.predicted(same, where, crop=crop, size=(50, 40), true_size=(100, 83))
    assert found.shape == (100, 83) and (found == 2).all()


def test_places_reach_both_ends_of_every_image() -> None:
    for side in range(32, 200, 7):
        tops = sorted({top for top, _ in windows.places(side, 32, 32, 21)})
        assert tops[0] == 0 and tops[-1] == side - 32
        assert all(b - a <= 21 for a, b in itertools.pairwise(tops))
        assert len(tops) == max(side - 32 + 20, 0) // 21 + 1  # mmsegmentation's number


def test_an_image_and_its_mask_are_cropped_alike() -> None:
    """Every pixel of the image says its class: wherever none is mixed, the crop's does too."""
    mask = torch.arange(6).repeat_interleave(40)[:, None] * 4 + torch.arange(4).repeat_interleave(
        30
    )
    image = (10 * mask).to(torch.uint8).expand(3, -1, -1).contiguous()
    fill, seen, filled = torch.full((3,), 255, dtype=torch.uint8), set(), 0
    for seed in range(40):
        crop, classes = random_pair(image, mask.short(), Draw(96, fill), random.Random(seed))
        assert crop.shape == (3, 96, 96) and classes.shape == (96, 96)
        known = classes != IGNORED
        assert (crop[:, ~known] == 255).all()
        exact = (crop[0] == 10 * classes.clamp(min=0)) & known
        assert exact.sum() > 0.8 * known.sum()
        seen |= set(classes.unique().tolist())
        filled += int((~known).any())
    assert seen == {IGNORED, *range(24)} and 5 < filled < 30


def test_the_long_side_of_a_very_long_image_is_bounded() -> None:
    assert resized(torch.zeros(3, 20, 30, dtype=torch.uint8), 64).shape == (3, 64, 96)
    assert resized(torch.zeros(3, 20, 300, dtype=torch.uint8), 64).shape == (3, 17, 256)


RECIPES = {
    "vit": {"width": {"min": 32, "max": 32, "step": 16}, "depth": {"min": 6, "max": 6, "step": 1}}
    | {"patch_size": 8, "head_dim": 16},
    "swin": {"name": "swin", "width": {"min": 16, "max": 16, "step": 16}}
    | {"stages": [[1, 1], [1, 1], [1, 1], [1, 1]], "head_dim": 16, "window": 4, "patch_size": 4},
    "resnet": {"name": "resnet", "patch_size": 4, "width": {"min": 16, "max": 16, "step": 16}}
    | {"stages": [[1, 1], [1, 1], [1, 1], [1, 1]], "norm_groups": 4},
}


@pytest.mark.parametrize(("kind", "side"), [("vit", 8), ("swin", 2), ("resnet", 2)])
def test_maps_are_the_places_of_the_last_map(kind: str, side: int) -> None:
    """(B, rows, columns, C) in the order of the image; of a pyramid without its copies."""
    crops = {"global_size": 64, "local_size": 32}
    recipe = load.from_dict({"backbone": RECIPES[kind], "crops": crops})
    model = backbone(recipe).eval()
    subnet = model.space.intact
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens, found = model(images, subnet), maps(model, images, subnet, taps="last")
    assert found.shape[:3] == (2, side, side)
    grid = tokens[:, 1:].unflatten(1, (side * model.copies, -1))
    again = grid.unflatten(1, (side, -1)).unflatten(3, (side, -1))  # (B, r, i, k, j, C)
    assert torch.equal(again, found[:, :, None, :, None].expand_as(again))
