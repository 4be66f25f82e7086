"""GELU and the bias gradient that its backward pass delivers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from poa_kernels import dispatch, two_stream_linear
from poa_kernels.gelu import gelu
from tests.kernels.truth import DTYPES, check, randn, strided, transposed

SHAPES = [(37, 48), (1, 1), (130, 7), (0, 16), (5, 100)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient(shape: tuple[int, int], dtype: torch.dtype) -> None:
    check(gelu, F.gelu, [2 * randn(*shape, seed=0)], dtype)


@pytest.mark.parametrize("lay_out", [strided, transposed])
def test_the_input_need_not_be_contiguous(lay_out) -> None:
    check(gelu, F.gelu, [randn(37, 48, seed=0)], torch.float32, lay_out=lay_out)


@pytest.mark.parametrize("mode", ["triton", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [21, 0])
def test_the_bias_gets_its_gradient_from_here(mode: str, rows: int, dtype: torch.dtype) -> None:
    def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        (h,) = two_stream_linear.two_stream_linear((x,), w, b.detach(), (18,))
        return gelu(h, b)

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.gelu(x @ w[:18].T + b[:18])

    inputs = [randn(rows, 16, seed=0), randn(24, 16, seed=1) / 4, randn(24, seed=2)]
    with dispatch.using(mode):
        check(layer, plain, inputs, dtype)
