"""Linear CKA from running sums against its definition by Gram matrices (HSIC)."""

import pytest
import torch

from poa_ds.evaluate.cka import Alike


def slow(x: torch.Tensor, y: torch.Tensor) -> float:
    """Of the Gram matrices of all pairs of images, centred by H = 1 - 11'/n (arXiv 1905.00414)."""
    n = len(x)
    centre = torch.eye(n, dtype=torch.float64) - torch.full((n, n), 1 / n, dtype=torch.float64)

    def hsic(k: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.trace(k @ centre @ other @ centre) / (n - 1) ** 2

    k, other = x.double() @ x.double().T, y.double() @ y.double().T
    return (hsic(k, other) / (hsic(k, k) * hsic(other, other)).sqrt()).item()


def fast(x: torch.Tensor, y: torch.Tensor, *batches: int) -> float:
    alike = Alike()
    for a, b in zip(x.split(batches or len(x)), y.split(batches or len(y)), strict=True):
        alike.add(a, b)
    return alike.cka()


def test_sums_over_batches_give_the_value_of_the_definition() -> None:
    torch.manual_seed(0)
    x, noise = torch.randn(40, 6) + 3, torch.randn(40, 9)
    y = x @ torch.randn(6, 9) + noise - 1
    wanted = slow(x, y)
    assert 0.2 < wanted < 0.99
    assert fast(x, y, 16, 16, 8) == pytest.approx(wanted, abs=1e-10)


def test_rotation_scale_and_shift_change_nothing_and_noise_is_unlike() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 5).double()
    turn, _ = torch.linalg.qr(torch.randn(5, 5).double())
    assert fast(x, 7 * x @ turn + 2) == pytest.approx(1, abs=1e-10)
    assert fast(x, torch.randn(50, 5)) < 0.4
    assert fast(x, x[:, :2]) < 0.95


def test_constant_features_are_like_nothing() -> None:
    value = fast(torch.randn(10, 3), torch.ones(10, 3))
    assert value != value  # NaN
