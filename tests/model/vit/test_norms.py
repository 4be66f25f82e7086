"""backbone.norms per_width: each width is the ViT with those norms, in values and gradients."""

import pytest
import torch
from torch import Tensor

from poa_ds.engine.optim import for_student
from poa_ds.export.extract import extract
from poa_ds.export.rebase import checked
from poa_ds.methods.method import method
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.vit.network import ElasticViT
from poa_ds.recipe import derived
from poa_ds.recipe.twin import twin
from poa_ds.system.errors import UsageError
from tests.distributed.programs.worker import recipe_with

SPACE = ElasticSpace((16, 32, 48), (2, 3), 3.0)
INTACT = SPACE.intact
OPTIONS = {"image_size": 32, "patch_size": 8, "head_dim": 8, "layer_scale": 1.0, "init": "torch"}


def is_norm(name: str) -> bool:
    return "norm" in name


@torch.no_grad()
def own() -> ElasticViT:
    """In float64; norms that have learned."""
    torch.manual_seed(0)
    made = ElasticViT(SPACE, norms="per_width", **OPTIONS).double()
    for name, p in made.named_parameters():
        p += 0.1 * torch.randn_like(p) * is_norm(name)
    return made


def with_norms_of(made: ElasticViT, width: int) -> ElasticViT:
    """A network of shared norms, which are those of one width: row width / 8 of the stored ones."""
    alone = ElasticViT(SPACE, **OPTIONS).double()
    row = width // 8 - 1
    state = {n: t[row] if is_norm(n) else t for n, t in made.state_dict().items()}
    alone.load_state_dict(state)
    return alone


def loss(streams: list[list[Tensor]]) -> Tensor:
    """Another weight for every token of every stream."""
    generator = torch.Generator().manual_seed(1)
    tokens = [x for of in streams for x in of]
    return sum((x * torch.randn(x.shape, generator=generator).double()).sum() for x in tokens)


@pytest.mark.parametrize("other", [Subnet(16, 2), Subnet(32, 3), Subnet(48, 2)])
def test_two_sizes_are_two_networks_with_norms_of_their_own(other: Subnet) -> None:
    made, sizes = own(), (INTACT, other)
    generator = torch.Generator().manual_seed(2)
    images = [torch.randn(2, 3, side, side, generator=generator).double() for side in (32, 16)]
    alone = [with_norms_of(made, size.width) for size in sizes]
    together = made.streams(images, sizes, [None, None])
    apart = [
        net.streams(images, (s,), [None, None])[0] for net, s in zip(alone, sizes, strict=True)
    ]
    loss(together).backward()
    loss(apart).backward()
    for ours, theirs in zip(together, apart, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert torch.allclose(x, y, rtol=1e-10, atol=1e-12)
    gradients = [dict(net.named_parameters()) for net in alone]
    for name, p in made.named_parameters():
        parts = [g[name].grad for g in gradients]
        wanted = torch.zeros_like(p)
        for size, part in zip(sizes, parts, strict=True):
            if part is not None:  # as of the mask token
                (wanted[size.width // 8 - 1] if is_norm(name) else wanted).add_(part)
        got = torch.zeros_like(p) if p.grad is None else p.grad
        assert (got - wanted).norm() <= 1e-6 * wanted.norm() + 1e-12, name  # resized positions


def test_an_extracted_size_has_its_own_norms() -> None:
    made = own()
    for size in (INTACT, Subnet(32, 2)):
        found, wanted = extract(made, size), extract(with_norms_of(made, size.width), size)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not torch.equal(extract(made, INTACT)["norm.weight"][:32], found["norm.weight"])


def test_all_widths_begin_alike_and_take_a_network_of_shared_norms() -> None:
    torch.manual_seed(3)
    shared = ElasticViT(SPACE, **OPTIONS)
    torch.manual_seed(3)
    made, images = ElasticViT(SPACE, norms="per_width", **OPTIONS), torch.randn(1, 3, 32, 32)
    for size in SPACE.subnets():
        assert torch.equal(made(images, size), shared(images, size))
    with torch.no_grad():
        for name, p in shared.named_parameters():
            p += 0.1 * torch.randn_like(p) * is_norm(name)
    made.load_state_dict(shared.state_dict())
    for size in SPACE.subnets():
        assert torch.equal(made(images, size), shared(images, size))


def test_norms_of_a_width_that_was_not_drawn_stay() -> None:
    recipe = recipe_with(backbone__norms="per_width")
    networks = method(recipe).networks()
    before = networks.backbone.norm.weight.detach().clone()
    optimizer = for_student(
        networks.student, depth=4, options=recipe.optimizer, average=networks.teacher
    )
    images, sizes = torch.randn(2, 3, 32, 32), (Subnet(64, 4), Subnet(48, 2))
    for _ in range(2):
        loss(networks.backbone.streams((images,), sizes, (None,))).backward()
        for group in optimizer.param_groups:
            group |= {"lr": 0.01, "weight_decay": 0.1 if group["decays"] else 0.0}
        optimizer.step()
    moved = (networks.backbone.norm.weight != before).any(1).tolist()
    assert moved == [False, False, True, True]  # of 16, 32, 48, 64 channels


@pytest.mark.parametrize("name", ["swin", "tucker"])
def test_others_refuse_them(name: str) -> None:
    with pytest.raises(UsageError, match=rf"backbone.norms is vit's: {name} takes no other"):
        recipe_with(backbone__norms="per_width", backbone__name=name)


def test_a_size_alone_has_one_width_and_another_basis_is_refused() -> None:
    recipe = recipe_with(backbone__norms="per_width")
    assert twin(recipe, derived.space(recipe).smallest).backbone.norms == "shared"
    with pytest.raises(UsageError, match=r"RUN has backbone.norms per_width"):
        checked(own(), "RUN")
