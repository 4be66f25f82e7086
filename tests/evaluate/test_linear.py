"""Stacked linear classifiers against nn.Linear, autograd, torch's SGD and its cosine."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.evaluate.features import (
    even4,
    features_of_blocks,
    kinds_of_blocks,
    last4,
    random_weights,
)
from poa_ds.evaluate.linear.classifiers import RATES, TOGETHER, Classifiers, cosine, dealt, units
from poa_ds.model.space import Subnet
from poa_ds.recipe import load
from tests.support.teachers import RECIPE

WIDTH, TAPS, CLASSES, BATCH, STEPS = 6, 3, 4, 16, 20


def batches(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(BATCH, (TAPS + 1) * WIDTH, generator=generator),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def test_each_learns_what_its_own_layer_and_optimizer_learn() -> None:
    """float32 sums in another order: 1e-6 of weights about 0.1, after 20 steps."""
    rates = (0.001, 0.1, 1.0)
    for unit in units("32x2", kinds_of_blocks(WIDTH, TAPS), rates):
        own = Classifiers(unit, CLASSES, seed=3, device="cpu")
        layers, optimizers = [], []
        for number in range(len(unit.rates)):
            layers.append(layer := nn.Linear(unit.width, CLASSES))
            layer.weight.data, layer.bias.data = (
                own.weight[number].clone(),
                own.bias[number].clone(),
            )
            sgd = torch.optim.SGD(layer.parameters(), unit.rates[number], momentum=0.9)
            cosines = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, STEPS, eta_min=0)
            optimizers.append((sgd, cosines))
        for step, (x, labels) in enumerate(batches()):
            own.learn(x, labels, cosine(step, STEPS))
            for layer, (sgd, cosines) in zip(layers, optimizers, strict=True):
                sgd.zero_grad()
                F.cross_entropy(layer(x[:, unit.columns]), labels).backward()
                sgd.step()
                cosines.step()
        for number, layer in enumerate(layers):
            torch.testing.assert_close(own.weight[number], layer.weight.data, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(own.bias[number], layer.bias.data, atol=1e-6, rtol=1e-5)
        assert (
            float(
                (own.weight - Classifiers(unit, CLASSES, seed=3, device="cpu").weight).abs().max()
            )
            > 0.01
        )


def test_columns_are_the_readouts_of_the_published_code() -> None:
    """[class tokens of the last n blocks][, mean of the last block's patches], written out."""
    torch.manual_seed(0)
    blocks = [(torch.randn(2, 5, WIDTH), torch.randn(2, WIDTH)) for _ in range(TAPS)]
    ours = torch.cat([*(cls for _, cls in blocks), blocks[-1][0].mean(1)], 1)
    found = {
        unit.kind: ours[:, unit.columns] for unit in units("32x2", kinds_of_blocks(WIDTH, TAPS))
    }
    assert len(found) == 4
    for n in (1, TAPS):
        output = torch.cat([cls for _, cls in blocks[-n:]], dim=-1)
        name = f"{n} block{'s' * (n > 1)}"
        assert torch.equal(found[name], output)
        with_mean = torch.cat((output, torch.mean(blocks[-1][0], dim=1)), dim=-1)
        assert torch.equal(found[f"{name} + avg"], with_mean)
    assert [*kinds_of_blocks(WIDTH, 1)] == ["1 block", "1 block + avg"]


def test_there_are_52_classifiers_in_products_of_a_fixed_shape() -> None:
    every = units("384x12", kinds_of_blocks(384, 4))
    assert sum(len(unit.rates) for unit in every) == 52 and len(RATES) == 13
    assert RATES[0] == 1e-5 and RATES[-1] == 0.1 and math.isclose(RATES[-2], 0.05)
    assert {len(unit.rates) for unit in every} <= {TOGETHER - 1, TOGETHER}
    assert len({unit.name for unit in every}) == len(every) == 16
    for ranks in (1, 2, 3, 8):
        hands = dealt(every, ranks)
        assert sorted(u.name for hand in hands for u in hand) == sorted(u.name for u in every)
        work = [sum(unit.width * len(unit.rates) for unit in hand) for hand in hands]
        assert max(work) - min(work) <= 4 * 5 * 384  # one unit


def test_a_rolled_label_is_a_mistake_that_shows() -> None:
    torch.manual_seed(0)
    labels = torch.arange(200) % CLASSES
    x = 10 * torch.eye(CLASSES, (TAPS + 1) * WIDTH)[labels] + torch.randn(200, (TAPS + 1) * WIDTH)
    for taught, least, most in ((labels, 200, 200), ((labels + 1) % CLASSES, 0, 0)):
        own = Classifiers(
            units("32x2", {"1 block": slice(0, WIDTH)}, (0.01,))[0], CLASSES, seed=0, device="cpu"
        )
        for step in range(100):
            own.learn(x, taught, cosine(step, 100))
        assert least <= int(own.right(x, labels)) <= most


@pytest.mark.parametrize(
    ("depth", "even", "last"),
    [
        (12, [3, 6, 9, 11], [8, 9, 10, 11]),
        (24, [6, 12, 18, 23], [20, 21, 22, 23]),
        (6, [2, 3, 4, 5], [2, 3, 4, 5]),
        (4, [1, 2, 3], [0, 1, 2, 3]),
        (2, [0, 1], [0, 1]),
        (1, [0], [0]),
    ],
)
def test_blocks_that_are_read_out(depth: int, even: list[int], last: list[int]) -> None:
    assert (even4(depth), last4(depth)) == (even, last)


def test_the_last_tap_is_the_output_and_others_are_those_of_a_shorter_network() -> None:
    model = random_weights(load.from_dict(RECIPE)).eval()
    images = torch.randn(2, 3, 32, 32)
    for subnet in (Subnet(32, 2), Subnet(48, 3)):
        width, places = subnet.width, last4(subnet.depth)
        taps = model.taps(images, subnet, places)
        assert torch.equal(taps[-1], model(images, subnet))
        blocks, model.blocks = model.blocks, model.blocks[: model.members(subnet)[0] + 1]
        rows, layout = model.enter((images,), (subnet,), (None,))
        rows = model.blocks[0](*rows, plan=model.plan(0, layout, (True,), (None,)))
        assert torch.equal(taps[0], model.leave(rows, layout)[0][0])
        model.blocks = blocks
        found = features_of_blocks(model, images, subnet, taps="last4")
        assert found.shape == (2, (len(places) + 1) * width)
        assert torch.equal(found[:, -width:], taps[-1][:, 1:].mean(1))
        assert torch.equal(found[:, -2 * width : -width], taps[-1][:, 0])
