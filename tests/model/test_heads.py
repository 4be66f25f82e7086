"""Prototype heads against the published values and gradients, for 1, 2 and 3 layers."""

import numpy as np
import pytest
import torch

from poa_ds.export.published import heads_from_published
from poa_ds.model.heads import HeadBank
from tests.conftest import shared

PROTOTYPES = (16, 24, 40, 64)


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(shared(f"golden/03_head/{name}.npz")) as arrays:
        return {name: torch.from_numpy(arrays[name]).double() for name in arrays.files}


def published_heads(layers: int) -> HeadBank:
    heads = HeadBank(192, PROTOTYPES, hidden=96, bottleneck=32, layers=layers).double()
    heads.load_state_dict(heads_from_published(load(f"state_dict_nl{layers}")), strict=True)
    return heads


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("width", [64, 128, 160, 192])
def test_scores_are_the_published_ones(layers: int, width: int) -> None:
    heads, wanted = published_heads(layers), load("outputs_f64")
    scores = heads.scores(load("inputs")[f"x{width}"][0])
    for i, got in enumerate(scores):
        assert (got - wanted[f"nl{layers}/in{width}/head{i}"][0]).abs().max() < 1e-11


def test_float32_scores_stay_close() -> None:
    heads, wanted = published_heads(3).float(), load("outputs_f64")
    for i, got in enumerate(heads.scores(load("inputs")["x64"][0].float())):
        assert torch.allclose(got.double(), wanted[f"nl3/in64/head{i}"][0], rtol=1e-5, atol=1e-5)


def test_gradients_are_the_published_ones() -> None:
    heads, wanted = published_heads(3), load("grad_nl3_in128")
    x = load("inputs")["x128"][0].requires_grad_()
    weights = [wanted.pop(f"_w{i}")[0] for i in range(len(PROTOTYPES))]
    sum((w * s).sum() for w, s in zip(weights, heads.scores(x), strict=True)).backward()
    assert (x.grad - wanted.pop("_dx")[0]).abs().max() < 1e-10
    for name, expected in wanted.items():
        ours = next(iter(heads_from_published({name: expected})))
        assert torch.allclose(heads.get_parameter(ours).grad, expected, rtol=1e-9, atol=1e-10), name
    assert len(wanted) == 12


def test_gradients_of_shallow_heads_agree_with_finite_differences() -> None:
    for layers in (1, 2):
        torch.manual_seed(layers)
        heads = HeadBank(12, (5,), hidden=6, bottleneck=4, layers=layers, init="xavier").double()
        x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, h=heads: h.scores(x)[0], x)


def test_streams_of_different_widths_are_scored_as_if_alone() -> None:
    heads = published_heads(2)
    wide, narrow = torch.randn(3, 192).double(), torch.randn(5, 64).double()
    for (together, _), (first, _), (second, _) in zip(
        heads(wide, narrow), heads(wide), heads(narrow), strict=True
    ):
        assert torch.allclose(together, torch.cat((first, second)), atol=1e-14)
