"""Means of few seeds: against the printed tables of Student's t, and by hand."""

import math

import pytest

from poa_ds.bench.statistics import mean, quantile


@pytest.mark.parametrize(
    ("freedom", "printed"), [(1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (29, 2.045)]
)
def test_quantiles_are_those_of_the_printed_tables(freedom: int, printed: float) -> None:
    assert round(quantile(freedom), 3) == printed


def test_the_error_of_three_values_by_hand() -> None:
    found = mean([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert math.isclose(found.error, 4.302653 * math.sqrt((4 + 1 + 9) / 2 / 3), rel_tol=1e-6)
    assert found.text() == "3.0 ± 6.6"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.0, 1.1, 1.2], "ahead"),
        ([-1.0, -1.1, -1.2], "behind"),
        ([2.4, 1.4, -1.5], "not shown"),  # two seeds of three tell another story
        ([5.0], "not shown"),
    ],
)
def test_only_an_interval_on_one_side_of_zero_decides(values: list[float], verdict: str) -> None:
    assert mean(values).verdict == verdict


def test_one_value_has_no_error() -> None:
    assert mean([70.0]).error is None and mean([70.0]).text() == "70.0"
