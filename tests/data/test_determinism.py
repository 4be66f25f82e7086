"""Property: whatever the sizes, ranks, workers and shards, a step is the same step."""

import itertools
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poa_ds.data.loader import slot_batches
from poa_ds.data.spec import BatchSpec
from poa_ds.data.store.order import BlockOrder, Order
from tests.data.test_loader import SPEC, same, take
from tests.support.shards import make_shards

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
SLOTS = 8


def global_batches(spec: BatchSpec, folder, world: int, workers: int, first: int, steps: int):
    """Step by step, the batches of all slots, as `world` ranks have them."""
    own = SLOTS // world
    ranks = [
        take(
            slot_batches(spec, folder, rank=rank, world=world, first_step=first, workers=workers),
            own * steps,
        )
        for rank in range(world)
    ]
    return [
        list(itertools.chain(*[rank[step * own : (step + 1) * own] for rank in ranks]))
        for step in range(steps)
    ]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(1, 25),
    per_shard=st.integers(1, 9),
    images=st.integers(1, 3),
    block=st.integers(0, 4),
    seed=st.integers(0, 2**62),
    world=st.sampled_from([1, 2, 4, 8]),
    workers=st.sampled_from([0, 0, 0, 1, 3]),
    stop=st.integers(0, 3),
)
def test_any_world_and_any_workers_see_the_same_batches_and_continue_alike(
    count: int,
    per_shard: int,
    images: int,
    block: int,
    seed: int,
    world: int,
    workers: int,
    stop: int,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = make_shards(Path(place) / "x", count=count, images_per_shard=per_shard)
        spec = replace(SPEC, slots=SLOTS, images_per_slot=images, seed=seed, block_shards=block)
        whole = global_batches(spec, folder, 1, 0, 0, 4)
        if workers:  # processes are slow: one step on one rank tells
            rank = stop % world
            own = SLOTS // world
            found = slot_batches(
                spec, folder, rank=rank, world=world, first_step=stop, workers=workers
            )
            assert all(map(same, take(found, own), whole[stop][rank * own : (rank + 1) * own]))
            return
        later = global_batches(spec, folder, world, 0, stop, 4 - stop)
        assert [len(step) for step in later] == [SLOTS] * (4 - stop)
        for step, expected in zip(later, whole[stop:], strict=True):
            assert all(map(same, step, expected))
        order = Order(count, seed) if not block else BlockOrder(folder.starts, seed, block)
        read = [int(p) for step in whole for batch in step for p in batch.positions]
        assert read == list(range(4 * SLOTS * images))
        rows = order.rows(0, len(read))
        labels = [int(label) for step in whole for batch in step for label in batch.labels]
        assert labels == folder.labels[rows].tolist()


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    block=st.integers(1, 14),
    seed=st.integers(0, 2**62),
)
def test_blocks_use_every_sample_once_per_epoch_and_few_shards_at_a_time(
    sizes: list[int], block: int, seed: int
) -> None:
    starts = [0, *itertools.accumulate(sizes)]
    order, n = BlockOrder(starts, seed, block), starts[-1]
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in range(3):
        rows = order.rows(epoch * n, n)
        assert Counter(rows.tolist()) == Counter(range(n))
        seen: list[list[int]] = []
        for position, row in enumerate(rows.tolist(), start=epoch * n):
            at, number = order.place(position)
            assert at == epoch and shard_of[row] in order.block_shards(at, number)
            if number == len(seen):
                seen.append(order.block_shards(at, number))
            assert number == len(seen) - 1
        assert sorted(itertools.chain(*seen)) == list(range(len(sizes)))
        assert order.block_shards(epoch, len(seen)) == order.block_shards(epoch + 1, 0)


def test_blocks_differ_by_epoch_and_seed_and_mix_their_shards() -> None:
    order, other = BlockOrder(range(0, 1001, 100), 0, 5), BlockOrder(range(0, 1001, 100), 1, 5)
    first = order.rows(0, 1000)
    assert not np.array_equal(first, order.rows(1000, 1000))
    assert not np.array_equal(first, other.rows(0, 1000))
    shards = first[:500] // 100
    runs = np.count_nonzero(np.diff(shards)) / 499
    assert 0.7 < runs < 0.9  # 4 of 5 neighbours lie in different shards of the five
