"""The comparison that the tests of kernels rely on refuses what is wrong."""

import pytest
import torch
from torch import Tensor

from tests.kernels.truth import check, randn


class Wrong(torch.autograd.Function):
    """x squared, whose gradient is off by a tenth of a percent."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2.002 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_gradient_is_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(check.__globals__["TOLERANCE"], torch.float64, 1e-12)
    x = randn(5, 4, seed=0)
    with pytest.raises(AssertionError, match="gradient 0"):
        check(Wrong.apply, lambda x: x * x, [x], dtype)
    check(lambda x: x * x, lambda x: x * x, [x], dtype)


def test_a_wrong_value_is_refused() -> None:
    with pytest.raises(AssertionError, match="output 0"):
        check(lambda x: 1.001 * x, lambda x: x, [randn(5, 4, seed=0)], torch.float32)
