"""Faster decoders: the same pixels, or smaller images of which no crop is enlarged."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from poa_ds.data.image.decoders import decoder, installed, reduction
from poa_ds.data.image.opening import Undecodable
from poa_ds.data.image.views import CropSpec, decode, random_box, views
from poa_ds.data.loader import slot_batches
from poa_ds.data.places import open_training
from poa_ds.recipe.tree import Data
from poa_ds.system.errors import UsageError
from tests.data.image.test_views import JPEG, LOSSLESS, encoded
from tests.data.test_loader import SPEC, same, take
from tests.support.published import CROPS
from tests.support.shards import image, make_shards

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
SMALL = CropSpec(48, (0.32, 1.0), 3, 16, (0.05, 0.32), 0.5)


@pytest.fixture
def simplejpeg() -> None:
    pytest.importorskip("simplejpeg", reason="the faster decoders need simplejpeg")


def photo(height: int, width: int, **options: object) -> bytes:
    return encoded(Image.fromarray(image(2, height, width)), "JPEG", **options)


@pytest.mark.parametrize("name", ["simplejpeg", "simplejpeg_scaled"])
@pytest.mark.parametrize("kind", [*JPEG, "png", "webp"])
def test_small_images_have_the_same_pixels(simplejpeg: None, name: str, kind: str) -> None:
    content = (JPEG | LOSSLESS)[kind]
    assert torch.equal(decoder(name, SMALL)(content), decode(content))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (31, 77), (1, 9)])
def test_simplejpeg_has_the_pixels_of_torchvision(
    simplejpeg: None, subsampling: int, height: int, width: int
) -> None:
    content = photo(height, width, subsampling=subsampling, quality=95)
    assert torch.equal(decoder("simplejpeg", SMALL)(content), decode(content))


def test_damage_is_named_as_ever(simplejpeg: None) -> None:
    for name in ("simplejpeg", "simplejpeg_scaled"):
        for length in (0, 2, 90, len(JPEG["jpeg"]) // 2):
            with pytest.raises(Undecodable):
                decoder(name, SMALL)(JPEG["jpeg"][:length])


def test_no_crop_of_a_reduced_image_is_enlarged() -> None:
    """The boxes that training draws, in images of all shapes, against the rule."""
    rng, reduced = random.Random(0), 0
    for _ in range(400):
        height, width = rng.randint(1, 900), rng.randint(1, 900)
        scale = reduction(height, width, SMALL)
        reduced += scale > 1
        low, narrow = -(-height // scale), -(-width // scale)
        for share, size in ((SMALL.global_scale, 48), (SMALL.local_scale, 16)):
            for _ in range(5 if scale > 1 else 0):
                box = random_box(low, narrow, share, rng)
                assert min(box[2:]) >= size - 1, (height, width, scale)  # boxes are rounded
    assert reduced > 100
    assert reduction(4000, 3000, SMALL) == 8 and reduction(375, 500, CROPS) == 1
    assert reduction(1067, 1600, CROPS) == 2
    assert reduction(1067, 1600, replace(CROPS, local_count=0)) == 2
    assert reduction(20, 9000, SMALL) == 1  # the shorter side decides


def test_crops_of_a_reduced_image_look_the_same(simplejpeg: None) -> None:
    """A box at the limit may be refused in one and not in the other: then another one is drawn."""
    rng, apart = random.Random(0), []
    while len(apart) < 60:
        height, width, seed = rng.randint(150, 700), rng.randint(150, 700), rng.random()
        waves = Image.fromarray(image(2)).resize((width, height), Image.Resampling.BICUBIC)
        content = encoded(waves, "JPEG", quality=95)
        small = decoder("simplejpeg_scaled", SMALL)(content)
        scale = reduction(height, width, SMALL)
        assert small.shape == (3, -(-height // scale), -(-width // scale))
        if scale > 1:
            a, b = (views(x, SMALL, random.Random(seed)) for x in (small, decode(content)))
            apart.append((a.global_crops.int() - b.global_crops.int()).abs().float().mean().item())
    apart.sort()
    assert apart[30] < 2 and apart[52] < 5  # of 255; another image differs by 50


def test_training_takes_the_decoder_of_the_recipe(simplejpeg: None, tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "train")
    expected = take(slot_batches(SPEC, folder), 3)
    for workers in (0, 1):
        spec = replace(SPEC, decoder="simplejpeg")
        assert all(map(same, take(slot_batches(spec, folder, workers=workers), 3), expected))


def test_a_missing_package_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert installed() == ("torchvision",)
    with pytest.raises(UsageError, match=r"data\.decoder simplejpeg_scaled needs .* pip install"):
        open_training(Data(str(tmp_path), decoder="simplejpeg_scaled"))
    assert decoder("torchvision", SMALL) is decode
