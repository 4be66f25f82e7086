"""poa-ds eval segmentation as others publish it: blocks, stages, rates, crops and colours."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from poa_ds.evaluate.features import random_weights
from poa_ds.evaluate.segmentation import colours
from poa_ds.evaluate.segmentation.crops import Draw, largest_share, random_pair
from poa_ds.evaluate.segmentation.heads import Schedule
from poa_ds.evaluate.segmentation.maps import dense4, maps, width
from poa_ds.evaluate.segmentation.masks import IGNORED
from poa_ds.export.extract import extract
from poa_ds.recipe import load
from tests.evaluate.test_linear_stages import STAGED
from tests.evaluate.test_segmentation_command import rows, run, segmentation
from tests.support.teachers import make_teacher

__all__ = ["run"]  # a fixture


@pytest.mark.parametrize("kind", STAGED)
@torch.no_grad()
def test_maps_of_stages_are_those_of_the_extracted_network_at_one_side(kind: str) -> None:
    """The plain network takes its maps in code of its own."""
    crops = {"global_size": 64, "local_size": 32}
    recipe = load.from_dict({"backbone": STAGED[kind], "crops": crops})
    model, images = random_weights(recipe).eval(), torch.randn(2, 3, 64, 64)
    for subnet in (model.space.smallest, model.space.intact):
        plain = extract(model, subnet).network().eval().maps(images)
        alike = [F.interpolate(x, (8, 8), mode="bilinear") for x in plain]
        for numbers in ((1, 2, 3, 4), (2, 4)):
            taps = f"stages {','.join(map(str, numbers))}"
            found = maps(model, images, subnet, taps=taps)
            wanted = torch.cat([alike[number - 1] for number in numbers], 1)
            torch.testing.assert_close(found.permute(0, 3, 1, 2), wanted, atol=1e-5, rtol=1e-4)
            assert found.shape[-1] == width(model, subnet, taps)


def test_dense_tasks_read_the_published_blocks() -> None:
    assert dense4(12) == [3, 5, 7, 11] and dense4(24) == [7, 11, 15, 23]
    assert dense4(4) == [0, 1, 2, 3] and dense4(2) == [0, 1]


def test_a_linear_decay_is_mmsegmentation_s_poly_with_its_warm_up() -> None:
    """Its rate of step i falls from the first step on, and the warm-up multiplies it."""
    steps, warm, first = 160, 15, 1e-6
    found = Schedule(steps, warm, "linear")
    for step in range(steps):
        usual = (1 - step / steps) ** 1.0
        missing = (1 - step / warm) * (1 - first) if step < warm else 0.0
        assert found.share(step) == pytest.approx(usual * (1 - missing))


def test_a_crop_that_one_class_fills_is_drawn_again() -> None:
    """A class is in a corner alone; what has no class does not count."""
    mask = torch.zeros(64, 64, dtype=torch.int16)
    mask[:32, :32], mask[32:40] = 1, IGNORED
    image, fill = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)

    def filled(ratio: float) -> int:
        drawn = (
            random_pair(image, mask, Draw(32, fill, ratio), random.Random(i))[1] for i in range(60)
        )
        return sum(largest_share(one) >= 0.75 for one in drawn)

    assert filled(1.0) > 10 and filled(0.75) == 0
    alone = torch.ones(40, 40, dtype=torch.int16)  # ten tries find none: the last is taken
    pair = random_pair(image[:, :40, :40], alone, Draw(32, fill, 0.75), random.Random(0))
    assert pair[0].shape == (3, 32, 32) and largest_share(pair[1]) == 1
    assert largest_share(torch.full((2, 2), IGNORED)) == 1


def test_colours_are_changed_one_by_one() -> None:
    red = np.zeros((1, 2, 3), np.uint8)
    red[..., 0] = 200
    third = colours.turned(red, hue=1 / 3)  # green, but for a 256th of the circle
    assert abs(third.astype(int) - [0, 200, 0]).max() <= 5
    assert (colours.turned(red, saturation=0.0) == 200).all()  # of the same value
    assert (colours.turned(red, saturation=1.5) == red).all()  # is at its most
    assert colours.linear(np.uint8([10, 250]), 0.5, 20.0).tolist() == [25, 145]
    assert colours.linear(np.uint8([10, 250]), 1.5, -32.0).tolist() == [0, 255]


def test_about_one_crop_of_sixteen_keeps_its_colours_and_grey_stays_grey() -> None:
    """Four coins change something; hue and saturation leave grey as it is."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(60, 190, (3, 16, 16), generator=generator, dtype=torch.uint8)
    grey = image[:1].expand(3, -1, -1).contiguous()
    found = [colours.distorted(image, random.Random(seed)) for seed in range(200)]
    assert 4 <= sum(torch.equal(x, image) for x in found) <= 25
    assert torch.equal(found[7], colours.distorted(image, random.Random(7)))
    means = [x.float().mean() for x in found]
    assert min(means) < image.float().mean() - 30 and max(means) > image.float().mean() + 30
    for seed in range(20):
        other = colours.distorted(grey, random.Random(seed))
        assert torch.equal(other[0], other[1]) and torch.equal(other[0], other[2])


def test_poa_s_numbers_are_the_defaults_of_its_protocol(run: Path) -> None:
    assert segmentation(run, "--protocol", "poa") == 0
    assert segmentation(run, "--protocol", "poa", "--no-distort", "--decay", "cosine") == 0
    own, other = rows(run)[0].protocol, rows(run)[3].protocol
    wanted = {"taps": "dense4", "learning_rates": [7e-4], "weight_decay": 0.05, "decay": "linear"}
    wanted |= {"cat_max_ratio": 0.75, "distort": True, "held_out": None, "published": False}
    assert {key: own[key] for key in wanted} == wanted
    assert (other["distort"], other["decay"], other["taps"]) == (False, "cosine", "dense4")


def test_stages_are_of_networks_that_have_some(run: Path, capsys: pytest.CaptureFixture) -> None:
    words = (("--stages", "1,2"), ("--warmup-steps", 4))
    said = ("a vit has none; --taps", "are not fewer than all 4 steps")
    for option, wanted in zip(words, said, strict=True):
        assert segmentation(run, *option) == 2
        assert wanted in capsys.readouterr().err
    with pytest.raises(SystemExit):
        segmentation(run, "--stages", "0,5")
    assert "'0,5': such as 1,2,3,4" in capsys.readouterr().err
    pyramid = make_teacher(run.parent / "swin", backbone=STAGED["swin"])
    size = ("--sizes", "all", "--crop", 64)
    assert segmentation(pyramid, "--stages", "3,1", *size) == 0
    assert rows(pyramid)[0].protocol["taps"] == "stages 1,3"
    for option in (("--taps", "last4"), ("--protocol", "poa")):
        assert segmentation(pyramid, *option, *size) == 2
        assert "a swin is read out by --stages 1,2,3,4" in capsys.readouterr().err
