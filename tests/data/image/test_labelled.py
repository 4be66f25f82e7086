"""Crops to learn labels from: timm's, and by an image's position alone."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision.transforms.functional import to_pil_image

from poa_ds.data.image.labelled import LabelledCrop, posterized
from tests.support.shards import image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def crop() -> LabelledCrop:
    return LabelledCrop(32, (0.08, 1.0), 0.5, "rand-m9-mstd0.5-inc1", 0.25, MEAN, STD)


def pixels(number: int) -> torch.Tensor:
    return torch.from_numpy(image(number)).permute(2, 0, 1)


def test_a_crop_is_what_timm_makes_from_these_seeds(crop: LabelledCrop) -> None:
    """With the published code's arguments; seeds of which no policy draws a colour of no bit."""
    published = create_transform(
        input_size=32,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    for number in range(8):
        seed = random.Random(number).getrandbits(32)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        wanted = published(to_pil_image(pixels(number)))
        assert torch.equal(crop(pixels(number), random.Random(number)), wanted)


def test_what_was_drawn_before_and_is_drawn_afterwards_does_not_matter(crop: LabelledCrop) -> None:
    first = crop(pixels(1), random.Random(5))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    wanted = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(crop(pixels(1), random.Random(5)), first)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == wanted
    assert not torch.equal(crop(pixels(1), random.Random(6)), first)


def test_a_colour_of_no_bit_is_black(crop: LabelledCrop) -> None:
    """Pillow refuses it now, and timm's policy draws it once in some hundred images."""
    picture = Image.fromarray(image(1))
    assert not np.asarray(posterized(picture, 0)).any()
    for bits in (1, 5, 8):
        assert np.array_equal(posterized(picture, bits), auto_augment.posterize(picture, bits))
    changes = [change for step in crop.transform.transforms for change in getattr(step, "ops", ())]
    assert posterized in [change.aug_fn for change in changes]


def test_policies_that_draw_a_change_no_bits_are_whole_too() -> None:
    made = LabelledCrop(32, (0.5, 1.0), 0.5, "v0", 0.0, (0.5,) * 3, (0.2,) * 3)
    assert all(
        made(torch.full((3, 40, 40), 100.0).byte(), random.Random(n)).isfinite().all()
        for n in range(150)
    )


def test_without_a_policy_and_erasing_a_crop_keeps_its_colours() -> None:
    plain = LabelledCrop(32, (1.0, 1.0), 0.0, "", 0.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    grey = torch.full((3, 40, 40), 100, dtype=torch.uint8)
    assert torch.allclose(plain(grey, random.Random(0)), torch.tensor(100 / 255))
