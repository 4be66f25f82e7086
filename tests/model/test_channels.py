"""Images of other numbers of channels: the first layer of every backbone, and what is counted."""

from dataclasses import replace

import pytest
import timm
import torch

from poa_ds.export.adapted import colours
from poa_ds.export.extract import extract
from poa_ds.model import form
from poa_ds.model import shape as shapes
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.plan.students import Students
from poa_ds.recipe import derived, load
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe
from tests.distributed.programs.worker import recipe_with
from tests.export.test_folder import SMALL
from tests.methods.test_sweet import tree
from tests.model.test_saved import held

SIDE = 32
BACKBONES = {
    "vit": ("vit", {}),
    "vit, rotary": ("vit", {"positions": "rope", "qkv_bias": "none", "norm_eps": 1e-5}),
    "tucker": ("vit", {"name": "tucker"}),
    "swin": ("swin", {}),
    "resnet": ("resnet", {}),
}


def recipe_of(kind: str, channels: int) -> Recipe:
    name, changes = BACKBONES[kind]
    return load.from_dict(
        {
            "backbone": SMALL[name] | changes,
            "crops": {"global_size": SIDE, "local_count": 0},
            "evaluation": {"resize": SIDE, "crop": SIDE, "sizes": ["all"]},
            "data": {"channels": channels},
            "augmentation": {"mean": [0.5] * channels, "std": [0.25] * channels}
            | colours(channels),
        }
    )


def made(kind: str, channels: int) -> tuple[ElasticBackbone, Recipe]:
    torch.manual_seed(0)
    recipe = recipe_of(kind, channels)
    return backbone(recipe).eval(), recipe


def first_of(network: ElasticBackbone) -> str:
    """The name of the first layer's weight."""
    return next(n for n, p in network.named_parameters() if p.ndim == 4 and p.shape[-1] > 1)


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_network_that_ignores_two_of_five_channels_is_that_of_three(kind: str) -> None:
    """Value and gradients; and its first weights start as wide as their number of inputs asks."""
    (three, _), (five, recipe) = made(kind, 3), made(kind, 5)
    first, state = first_of(five), five.state_dict()
    spread = state[first].std() / three.state_dict()[first].std()
    assert spread == pytest.approx((3 / 5) ** 0.5, rel=0.05)
    for name, tensor in three.state_dict().items():
        part = state[name][:, :3] if name == first else state[name]
        part.copy_(tensor)
    state[first][:, 3:] = 0
    images = torch.randn(2, 5, SIDE, SIDE)
    subnet = derived.space(recipe).smallest
    found, wanted = five(images, subnet), three(images[:, :3], subnet)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    (found**2).mean().backward(), (wanted**2).mean().backward()
    mine, theirs = (dict(network.named_parameters())[first].grad for network in (five, three))
    assert (mine[:, :3] - theirs).norm() < 1e-4 * theirs.norm()
    assert mine[:, 3:].norm() > 0


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_size_outside_and_its_counted_parameters(kind: str) -> None:
    network, _ = made(kind, 5)
    images = torch.randn(2, 5, SIDE, SIDE)
    for subnet in (network.space.smallest, network.space.intact):
        state = extract(network, subnet)
        plain, found = state.network(), form.of(network.kind)
        assert state.arguments["in_chans"] == 5
        assert sum(p.numel() for p in plain.parameters()) == network.parameter_count(subnet)
        with torch.no_grad():
            wanted = network(images, subnet)
            tokens = found.tokens(plain.forward_features(images), network.shape)
            assert (tokens - wanted).abs().max() < 1e-4 * wanted.abs().max()
            if not found.not_timm(network.shape, subnet):
                name, arguments, tensors = found.timm(network.shape, subnet, state)
                theirs = timm.create_model(name, num_classes=0, **arguments).eval()
                theirs.load_state_dict(tensors)
                feature = theirs(images)
                assert (feature - wanted[:, 0]).abs().max() < 1e-4 * wanted.abs().max()
    assert "in_chans" not in extract(made(kind, 3)[0], network.space.smallest).arguments
    one, two, three = (derived.shape(recipe_of(kind, n)) for n in (1, 2, 3))
    size = network.space.smallest
    work = [shape.flops(size, SIDE) for shape in (one, two, three)]
    assert work[2] - work[1] == work[1] - work[0] > 0


@pytest.mark.parametrize("channels", [5])
def test_published_tensors_tell_their_channels(channels: int) -> None:
    for kind in ("vit", "swin", "resnet"):
        network, _ = made(kind, channels)
        found, intact = form.of(kind), network.space.intact
        alone = made_alone(kind, channels, intact)
        state = found.to_published(alone.state_dict(), getattr(alone.shape, "head_dim", 0))
        again = found.network_of(state, getattr(alone.shape, "head_dim", 0))
        assert again.shape.channels == channels, kind


def made_alone(kind: str, channels: int, size: Subnet) -> ElasticBackbone:
    recipe = recipe_of(kind, channels)
    options = replace(shapes.one_size(recipe.backbone, size), names={})
    return backbone(replace(recipe, backbone=options))


@pytest.mark.parametrize("kind", ["vit", "tucker"])
def test_what_autograd_keeps_of_crops_of_many_channels_is_counted(kind: str) -> None:
    torch.manual_seed(0)
    changes = {"backbone": tree([6, 24, 40])["backbone"]} if kind == "tucker" else {}
    recipe = recipe_with(
        data__channels=50,
        augmentation__mean=[0.5] * 50,
        augmentation__std=[0.25] * 50,
        **{f"augmentation__{key}": 0.0 for key in colours(50)},
        **changes,
    )
    space = derived.space(recipe)
    students = Students(recipe, (space.intact, space.smallest), masked=0)
    counted = sum(students.saved().all_kept().values())
    assert counted == pytest.approx(held(students), rel=0.05)
