"""Patches of 14 pixels, of which no power of two is a multiple: 224 and 518 pixels."""

from pathlib import Path

import pytest
import torch

from poa_ds.model.build import backbone
from poa_ds.recipe import derived, load

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("image", [224, 518])
def test_an_image_of_many_patches_of_14_is_a_forward_away(image: int) -> None:
    words = ["backbone.patch_size=14", f"crops.global_size={image}", "crops.local_size=98"]
    words += [f"evaluation.crop={image}", f"evaluation.resize={image}"]
    recipe = load.recipe(ROOT / "ds_configs/photos.yaml", words)
    space = derived.space(recipe)
    network = backbone(recipe.backbone, image, space, channels=3)
    with torch.no_grad():
        tokens = network(torch.zeros(1, 3, image, image), space.smallest)
        small = network(torch.zeros(1, 3, 98, 98), space.smallest)
    assert tokens.shape == (1, 1 + (image // 14) ** 2, space.smallest.width)
    assert small.shape == (1, 1 + 7**2, space.smallest.width)
