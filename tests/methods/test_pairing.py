"""The table of pairs against loops that say the rule in other words."""

import pytest
import torch

from poa_ds.methods import pairing


@pytest.mark.parametrize("local", [0, 1, 3])
def test_every_view_meets_the_other_crops_of_its_image(local: int) -> None:
    images, views = 4, 2 + local
    table = pairing.rows_met(images, views, torch.device("cpu")).tolist()
    pairs = 0
    for view in range(views):
        for image in range(images):
            met = {row for row in table[view * images + image] if row >= 0}
            crops = {0: {1}, 1: {0}}.get(view, {0, 1})
            assert met == {crop * images + image for crop in crops}
            pairs += len(met)
    assert pairs == images * pairing.count(views) == images * (2 + 2 * local)
