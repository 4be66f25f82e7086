"""Rearrangements with named axes: on fake tensors, compiled, and by hand."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from poa_ds.model.backbone import enlarge, pooled
from poa_ds.model.swin import windows
from tests.test_library import MODELS


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_and_gradients_have_their_shapes_without_any_data(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All operators, the rearrangements with named axes among them, work on fake tensors."""
    # real ones before, fake ones after
    for cached in (windows.windows, windows.relative_positions):
        cached.cache_clear()
        request.addfinalizer(cached.cache_clear)
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda p, std: p)  # it looks at its numbers
    with FakeTensorMode():
        model = MODELS[kind]()
        crops, masks = [torch.randn(2, 3, 64, 64), torch.randn(4, 3, 32, 32)], torch.ones(2, 16)
        subnets = (model.space.intact, model.space.smallest)
        tokens = model.streams(crops, subnets, [masks.bool(), None])
        sum(t.sum() for stream in tokens for t in stream).backward()
    widths = [model.feature_width(subnet) for subnet in subnets]
    assert [[tuple(t.shape) for t in stream] for stream in tokens] == [
        [(2, 17, width), (4, 5, width)] for width in widths
    ]
    assert all(p.grad.shape == p.shape for p in model.parameters())


def test_named_axes_compile_into_one_graph() -> None:
    maps, masks = torch.randn(2, 3, 5, 4), torch.rand(2, 16) < 0.5

    def both(maps: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pooled(maps), enlarge(masks, 8, 12)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(maps, masks), both(maps, masks), strict=True):
        assert torch.equal(got, wanted)
    slow = maps.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    assert torch.equal(pooled(maps)[:, 1:], slow)
    assert torch.equal(enlarge(masks, 8, 12)[1, 3, 8], masks[1, 1 * 4 + 2])
