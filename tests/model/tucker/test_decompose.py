"""Tucker's form of given matrices: exact at full ranks, else within a known bound."""

import pytest
import torch
from torch import Tensor

from poa_ds.export.extract import extract
from poa_ds.model.tucker.decompose import decompose
from poa_ds.model.tucker.network import ElasticTucker
from poa_ds.model.vit.network import ElasticViT
from poa_ds.system.errors import UserError
from tests.model.tucker.test_template import by_hand, network, small


def made(core: Tensor, bases: tuple[Tensor, ...]) -> Tensor:
    return torch.einsum("ijk,mi,aj,bk->mab", core, *bases)


@pytest.mark.parametrize("ranks", [(9, 8, 7), (4, 8, 7), (3, 5, 2), (1, 1, 1)])
def test_the_error_is_within_what_the_three_modes_cut_off(ranks: tuple[int, int, int]) -> None:
    whole = torch.randn(9, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    core, bases = decompose(whole, ranks)
    assert tuple(core.shape) == ranks
    for base in bases:
        torch.testing.assert_close(base.T @ base, torch.eye(base.shape[1]).double())
    cut = [
        torch.linalg.svdvals(whole.movedim(mode, 0).flatten(1))[rank:].square().sum()
        for mode, rank in enumerate(ranks)
    ]
    error = (made(core, bases) - whole).square().sum()
    assert max(cut) - 1e-9 <= error <= sum(cut) + 1e-9
    # each base is the singular vectors themselves, up to signs
    for mode, (base, rank) in enumerate(zip(bases, ranks, strict=True)):
        left = torch.linalg.svd(whole.movedim(mode, 0).flatten(1))[0][:, :rank]
        torch.testing.assert_close((left.T @ base).abs(), torch.eye(rank).double())


def test_a_tensor_of_rank_one_needs_no_more_than_rank_one() -> None:
    vectors = [torch.randn(n, dtype=torch.float64) for n in (9, 8, 7)]
    whole = torch.einsum("m,a,b->mab", *vectors)
    torch.testing.assert_close(made(*decompose(whole, (1, 1, 1))), whole, rtol=1e-12, atol=1e-12)


def test_slices_are_taken_apart_as_they_are_made() -> None:
    template, wanted = small(), by_hand(small())
    got = torch.cat([template.slices(block) for block in template.blocks()])
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_at_full_ranks_a_vit_becomes_a_template_that_computes_the_same() -> None:
    like = network((48, 64, 64))
    vit = ElasticViT(
        like.space, image_size=32, patch_size=8, head_dim=16, layer_scale=1.0, init="torch"
    ).eval()
    assert like.take(vit.plain_state()) < 1e-6
    images = torch.randn(2, 3, 32, 32)
    for size in like.space.subnets():
        torch.testing.assert_close(like(images, size), vit(images, size), rtol=0, atol=2e-5)
        ours, theirs = extract(like, size), extract(vit, size)
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-6)


def test_fewer_ranks_are_filled_as_a_template_starts_and_found_again() -> None:
    """What a template of these ranks makes is within them: nothing is lost."""
    first: ElasticTucker = network((24, 32, 32))
    again = network((24, 32, 32))
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert again.take(first.plain_state()) < 1e-6
    for a, b in zip(again.template(), first.template(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for net, tolerance in ((again, 1e-4), (first, 0.1)):
        square = torch.cat(net.template.block_factors()).square().mean().item()
        assert square == pytest.approx(1 / 24, rel=tolerance)
    smaller = network((12, 16, 16))
    assert 0.3 < smaller.take(first.plain_state()) < 1


def test_a_network_that_has_more_is_refused_by_what_it_has() -> None:
    state = network().plain_state() | {"embed.registers": torch.zeros(1)}
    with pytest.raises(UserError, match=r"one of them has embed\.registers$"):
        network().take(state)
