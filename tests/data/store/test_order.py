"""The order of the samples: a pure function that resuming and other layouts share."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poa_ds.data.store.order import MASKS, VIEWS, Order, keyed, slot_positions

PROMISED = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7, 5, 3, 7, 8, 2, 4, 1, 0, 6, 9]


def test_every_epoch_reads_each_sample_once_in_another_order() -> None:
    order = Order(101, seed=5)
    epochs = [order.rows(epoch * 101, 101).tolist() for epoch in range(4)]
    assert all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@given(n=st.integers(1, 40), first=st.integers(0, 200), count=st.integers(0, 90))
def test_rows_are_the_single_rows(n: int, first: int, count: int) -> None:
    order = Order(n, seed=1)
    rows = order.rows(first, count)
    assert rows.dtype == np.int64 and len(rows) == count
    assert rows.tolist() == [Order(n, seed=1).row(first + place) for place in range(count)]


def test_seeds_give_unrelated_orders() -> None:
    first, second = (Order(1000, seed).rows(0, 1000) for seed in (0, 1))
    assert (first == second).sum() < 10


def test_the_order_is_the_same_for_ever() -> None:
    """A checkpoint resumes in this order years later: these numbers never change."""
    assert Order(10, seed=0).rows(0, 20).tolist() == PROMISED


def test_every_place_is_equally_likely() -> None:
    counts = collections.Counter(Order(5, seed).row(0) for seed in range(5000))
    # binomial with p = 1/5: standard deviation 28
    assert all(abs(counts[sample] - 1000) < 5 * 28 for sample in range(5))


def test_at_most_two_permutations_are_kept() -> None:
    order = Order(7, seed=0)
    for position in range(0, 200, 3):
        order.rows(position, 9)
        assert len(order._permutations) <= 2
    assert order.rows(0, 7).tolist() == Order(7, seed=0).rows(0, 7).tolist()


def test_slots_share_out_the_positions_of_a_step() -> None:
    found = [p for step in (0, 1) for slot in range(3) for p in slot_positions(step, slot, 4, 3)]
    assert found == list(range(24))
    with pytest.raises(AssertionError):
        slot_positions(0, 3, 4, 3)


def test_generators_of_neighbouring_keys_are_unrelated() -> None:
    keys = [(p, s, c) for p in (MASKS, VIEWS) for s in range(10) for c in range(200)]
    first = np.array([keyed(*key).random() for key in keys])
    assert len(set(first)) == len(keys)
    assert keyed(VIEWS, 1, 2).random() == keyed(VIEWS, 1, 2).random()
    # of 4000 uniform numbers: mean with deviation 0.0046, neighbours with correlation 0.016
    assert abs(first.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.06


def test_keys_do_not_run_into_each_other() -> None:
    assert keyed(MASKS, 1, 1, 5).random() != keyed(VIEWS, 1, 5).random()
    assert keyed(MASKS, 1, 5).random() != keyed(VIEWS, 1, 5).random()
    assert keyed(MASKS, 0, 1, 0).random() != keyed(MASKS, 0, 0, 1).random()
    with pytest.raises(AssertionError):
        keyed(MASKS, -1)
    with pytest.raises(AssertionError):
        keyed(MASKS, 1 << 64)
