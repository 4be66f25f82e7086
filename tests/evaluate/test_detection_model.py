"""What detectors see: maps of plain networks, and pyramids made of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.evaluate.detection.pyramid import Features, SimplePyramid
from poa_ds.evaluate.features import random_weights
from poa_ds.export.extract import extract
from poa_ds.model.space import Subnet
from poa_ds.recipe import load
from tests.export.test_folder import SIZES, SMALL


def plain(kind: str) -> nn.Module:
    """A size of random weights by itself."""
    torch.manual_seed(0)
    recipe = load.from_dict(
        {"backbone": SMALL[kind], "crops": {"global_size": 64, "local_size": 32}}
    )
    return extract(random_weights(recipe), Subnet.read(SIZES[kind][0])).network()


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_the_last_map_is_what_features_are_made_of(kind: str) -> None:
    network, images = plain(kind), torch.randn(2, 3, 64, 96)
    maps, whole = network.maps(images), network.forward_features(images)
    last = maps[-1].flatten(2).transpose(1, 2)
    wanted = {
        "vit": lambda: whole[:, 1:],
        "swin": lambda: whole.flatten(1, 2),
        "resnet": lambda: whole.flatten(2).transpose(1, 2),
    }[kind]()
    assert torch.equal(last, wanted)


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_maps_lie_where_their_strides_say(kind: str) -> None:
    """A change of one corner of the image changes the first map there, and not far away."""
    network, images = plain(kind), torch.randn(1, 3, 64, 96)
    maps = network.maps(images)
    assert [x.shape[2:] for x in maps] == [(64 // s, 96 // s) for s in network.strides]
    changed = images.clone()
    changed[:, :, :2, -2:] += 3
    if len(maps) == 4:
        moved = (network.maps(changed)[0] - maps[0]).abs().amax((0, 1)) > 1e-6
        rows, columns = moved.nonzero().unbind(1)
        assert rows.min() == 0 and columns.max() == moved.shape[1] - 1
        assert len(rows) < moved.numel() / 2 or kind == "resnet"  # group norms see everything


@pytest.mark.parametrize("kind", SMALL)
def test_levels_have_their_channels_and_strides_and_every_parameter_a_gradient(kind: str) -> None:
    network = plain(kind).train()
    features = Features(network, out=16)
    last = features.strides[-1]
    images = torch.randn(1, 3, 2 * last, 3 * last)
    levels = features(images)
    sides = {str(i): (2 * last // s, 3 * last // s) for i, s in enumerate(features.strides)}
    assert {n: tuple(x.shape[2:]) for n, x in levels.items()} == sides | {"pool": (1, 2)}
    assert {x.shape[1] for x in levels.values()} == {16}
    assert [b / a for a, b in zip(features.strides, features.strides[1:], strict=False)] == [2] * 3
    sum(x.square().sum() for x in levels.values()).backward()
    without = [n for n, p in features.named_parameters() if p.grad is None]
    assert not without


@torch.no_grad()
def test_a_simple_pyramid_is_made_of_the_one_map() -> None:
    """Level 2 by hand, level 3 as level 2's kind of half the map; strides of a patch of 16."""
    pyramid, x = SimplePyramid(8, 12), torch.randn(1, 8, 6, 4)
    levels = pyramid([x])
    assert [tuple(level.shape[2:]) for level in levels] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    _, first, norm, second, last = pyramid.levels[2]

    def normed(y: Tensor, layer: nn.LayerNorm) -> Tensor:
        mean, square = y.mean(1, keepdim=True), y.var(1, keepdim=True, correction=0)
        y = (y - mean) / (square + layer.eps).sqrt()
        return y * layer.weight[:, None, None] + layer.bias[:, None, None]

    wanted = normed(F.conv2d(x, first.weight), norm)
    wanted = normed(F.conv2d(wanted, second.weight, padding=1), last)
    torch.testing.assert_close(levels[2], wanted, rtol=1e-5, atol=1e-5)
