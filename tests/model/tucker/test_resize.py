"""A new size from a template: the trained sizes exactly, others by their definition."""

import pytest
import torch

from poa_ds.export.extract import extract
from poa_ds.model.layers import scale_inputs
from poa_ds.model.space import Subnet
from poa_ds.model.tucker.network import ElasticTucker
from poa_ds.system.errors import UsageError
from tests.model.tucker.test_template import network


def drawing() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def grown() -> ElasticTucker:
    """A template network whose vectors are not what they start as."""
    model, generator = network(), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_a_trained_size_is_what_extract_writes(exponent: float) -> None:
    model = grown()
    scale_inputs(model, exponent)
    for size in model.space.subnets():
        wanted, got = extract(model, size), extract(model.resized(size, drawing()), size)
        assert wanted.keys() == got.keys() and wanted.arguments == got.arguments
        for name, tensor in wanted.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_another_depth_lies_between_the_blocks() -> None:
    model = grown()
    made = model.resized(Subnet(64, 7), drawing())
    old, new = model.template.block_factors(), made.template.block_factors()
    for place, (low, share) in enumerate([(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5), (2, 0.0)]):
        wanted = old[low] if share == 0 else (old[low] + old[low + 1]) / 2
        torch.testing.assert_close(new[place], wanted)
    for block, nearest in zip(made.blocks, (0, 1, 1, 2, 2, 3, 3), strict=True):
        assert torch.equal(block.norm1.weight, model.blocks[nearest].norm1.weight)
        assert torch.equal(block.mlp.fc1.bias, model.blocks[nearest].mlp.fc1.bias)


def test_a_wider_network_keeps_the_old_rows_and_adds_alike_ones() -> None:
    model, width = grown(), 640
    made = model.resized(Subnet(width, 4), drawing())
    ours, theirs = model.template, made.template
    assert torch.equal(theirs.row_factor[:64], ours.row_factor)
    torch.testing.assert_close(theirs.column_factor[:64], ours.column_factor * 64 / width)
    for new, old in (
        (theirs.row_factor, ours.row_factor),
        (theirs.column_factor * 10, ours.column_factor),
    ):
        assert new[64:].std().item() == pytest.approx(
            old.std(dim=0).square().mean().sqrt().item(), rel=0.05
        )
    norm, scale = made.blocks[1].norm2, made.blocks[1].ls1.gamma
    assert (norm.weight[64:] == 1).all() and not norm.bias[64:].any()
    torch.testing.assert_close(scale[64:], model.blocks[1].ls1.gamma.mean().expand(width - 64))
    assert not made.blocks[1].attn.qkv.bias[3 * 64 :].any()
    # what lies in the template's channels is carried over: E = U a gives E' = U' a
    for embed, old in ((made.embed.patch.weight, model.embed.patch.weight),):
        inside = ours.row_factor @ torch.linalg.lstsq(ours.row_factor, old.flatten(1)).solution
        a = torch.linalg.lstsq(ours.row_factor, inside).solution
        torch.testing.assert_close(embed[:64], old)
        torch.testing.assert_close(
            embed[64:].flatten(1), theirs.row_factor[64:] @ a, rtol=1e-3, atol=1e-5
        )
    images = torch.randn(2, 3, 32, 32, generator=drawing())
    assert made(images, Subnet(width, 4)).isfinite().all()
    again = model.resized(Subnet(width, 4), drawing())
    assert all(
        torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True)
    )


def test_sizes_that_no_vit_has_are_refused() -> None:
    for size, said in (
        (Subnet(40, 3), "width 40 is not a multiple of backbone.head_dim 16"),
        (Subnet(64, 0), "at least 16x1"),
        (Subnet(0, 2), "at least 16x1"),
        (Subnet(64, (1, 2)), "WIDTHxDEPTH"),
    ):
        with pytest.raises(UsageError, match=said):
            network().resized(size, drawing())
