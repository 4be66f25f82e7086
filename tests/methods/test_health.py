"""Figures of a collapse against slow sums."""

import math

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from poa_ds.methods import health


def slow_entropy(p: np.ndarray) -> float:
    return -sum(x * math.log(x) for x in p.tolist() if x > 0)


def random_targets(rows: int = 7, prototypes: int = 12) -> torch.Tensor:
    scores = torch.randn(rows, prototypes, generator=torch.Generator().manual_seed(0))
    return torch.softmax(4 * scores, -1)


def test_entropies_are_the_slow_sums() -> None:
    targets = random_targets()
    rows = [slow_entropy(row) for row in targets.double().numpy()]
    assert abs(health.target_entropy(targets) - np.mean(rows) / math.log(12)) < 1e-6
    mean = targets.double().numpy().mean(0)
    assert abs(health.prototype_usage(targets) - slow_entropy(mean) / math.log(12)) < 1e-6


def test_entropies_at_both_ends() -> None:
    one_hot, same = torch.eye(8), torch.eye(8)[[3] * 8]
    uniform = torch.full((5, 8), 1 / 8)
    for targets, entropy, usage in ((one_hot, 0, 1), (same, 0, 0), (uniform, 1, 1)):
        assert abs(health.target_entropy(targets) - entropy) < 1e-6
        assert abs(health.prototype_usage(targets) - usage) < 1e-6


def test_the_spread_is_one_on_the_sphere_and_zero_for_equal_rows() -> None:
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert abs(health.feature_std(rows) - 1) < 0.01
    assert health.feature_std(rows[:1].repeat(9, 1)) < 1e-6
    few = rows[:5].double().numpy()
    unit = few / np.sqrt((few**2).sum(1, keepdims=True))
    deviations = [math.sqrt(((column - column.mean()) ** 2).mean()) for column in unit.T]
    assert abs(health.feature_std(rows[:5]) - np.mean(deviations) * 4) < 1e-6


def test_the_effective_rank_counts_directions() -> None:
    rows = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    assert abs(health.effective_rank(rows[:1].repeat(30, 1)) - 1) < 1e-3
    assert abs(health.effective_rank(torch.eye(12)) - 12) < 1e-4
    unit = rows.double().numpy()
    unit /= np.sqrt((unit**2).sum(1, keepdims=True))
    singular = np.sqrt(np.linalg.eigvalsh(unit.T @ unit))  # another way to the same numbers
    slow = math.exp(slow_entropy(singular / singular.sum()))
    assert abs(health.effective_rank(3.0 * rows) - slow) < 1e-3
    assert health.effective_rank(torch.zeros(4, 3)) == 1


def test_rows_that_are_not_finite_have_figures_that_are_not() -> None:
    rows = torch.randn(6, 4)
    rows[2, 1] = math.nan
    found = health.figures(rows, [torch.full((6, 3), math.nan)])
    assert all(value.isnan() for value in found.values())


def test_each_head_counts_alike() -> None:
    one = health.figures(torch.randn(4, 8), [torch.eye(4), torch.full((4, 6), 1 / 6)])
    assert abs(one["health/target_entropy"] - 0.5) < 1e-6
    assert abs(one["health/prototype_usage"] - 1) < 1e-6


class Solved(TorchDispatchMode):
    """Notes on which devices matrices are decomposed."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "svd" in str(func):
            self.devices.append(args[0].device.type)
        return func(*args, **kwargs or {})


def test_a_gpu_decomposes_no_matrix_and_gets_the_figure() -> None:
    with FakeTensorMode(), Solved() as solved:
        found = health.effective_rank(torch.empty(100, 64, device="cuda"))
    assert solved.devices == ["cpu"] and found.device.type == "cuda"
