"""The menu, the draws and the block choice against the published lists and simple properties."""

import json
from collections import Counter

import pytest

from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.system.errors import UsageError
from tests.conftest import shared

VIT_L = ElasticSpace(tuple(range(384, 1025, 64)), tuple(range(12, 25)), 3.0)


def published() -> dict:
    return json.loads(shared("golden/07_networks/case.json").read_text())["recipes"]["vit"]


def test_the_menu_is_the_published_list_without_its_intact_entry() -> None:
    expected = [
        Subnet(w, d) for w, d, times in published()["networks_in_order"] for _ in range(times)
    ]
    assert VIT_L.menu() == expected[:-1]
    assert expected[-1] == VIT_L.intact


def test_block_indices_are_the_published_ones() -> None:
    for depth, blocks in published()["block_idx"].items():
        assert VIT_L.blocks(int(depth)) == blocks


def test_draws_per_slot_with_seed_0_are_the_published_sequences() -> None:
    sequences = published()["network_id_sequence_per_rank"]
    menu = VIT_L.menu()
    for slot, sequence in sequences.items():
        draws = [
            VIT_L.draw(step, int(slot), seed=0, slots=4, policy="per_slot")
            for step in [*range(20), *range(len(menu), len(menu) + 5)]
        ]
        ids = sequence["first20"] + sequence["first5_of_second_pass"]
        assert draws == [menu[i] for i in ids]


def test_same_gives_every_slot_one_size_and_it_changes_with_step() -> None:
    draws = [
        {VIT_L.draw(step, slot, seed=1, slots=8, policy="same") for slot in range(8)}
        for step in range(20)
    ]
    assert all(len(d) == 1 for d in draws)
    assert len(set.union(*draws)) > 10


@pytest.mark.parametrize("slots", [1, 2, 7, 32, 572])
def test_balanced_laps_use_every_entry_exactly_once(slots: int) -> None:
    menu, laps = VIT_L.menu(), 3
    steps = -(-laps * len(menu) // slots)
    draws = [
        [VIT_L.draw(step, slot, seed=3, slots=slots, policy="balanced") for slot in range(slots)]
        for step in range(steps)
    ]
    flat = Counter(subnet for step in draws for subnet in step)
    extra = Counter(subnet for subnet in draws[-1])  # the last group may reach into lap 4
    for subnet, times in Counter(menu).items():
        assert laps * times <= flat[subnet] <= laps * times + extra[subnet]


def test_balanced_draws_with_more_slots_than_entries() -> None:
    space = ElasticSpace((32, 64), (2, 3), 1.0)
    draws = [space.draw(0, slot, seed=0, slots=8, policy="balanced") for slot in range(8)]
    assert set(draws) == set(space.menu())


def test_balanced_slots_of_a_step_cost_about_the_same() -> None:
    def waiting(policy: str) -> float:
        total = 0.0
        for step in range(60):
            costs = [
                VIT_L.cost(VIT_L.draw(step, slot, seed=0, slots=32, policy=policy))
                for slot in range(32)
            ]
            total += max(costs) - sum(costs) / 32
        return total / 60

    assert waiting("balanced") < 0.05 < 0.4 < waiting("per_slot")


def test_balanced_slots_are_dealt_at_random() -> None:
    first = [VIT_L.draw(step, 0, seed=0, slots=32, policy="balanced") for step in range(40)]
    last = [VIT_L.draw(step, 31, seed=0, slots=32, policy="balanced") for step in range(40)]
    larger = sum(VIT_L.cost(a) > VIT_L.cost(b) for a, b in zip(first, last, strict=True))
    assert 8 <= larger <= 32


def test_resuming_draws_the_same_subnets() -> None:
    wanted = VIT_L.draw(100_000, 5, seed=0, slots=32, policy="balanced")
    for step in (3, 99_999, 100_001, 100_000):
        again = VIT_L.draw(step, 5, seed=0, slots=32, policy="balanced")
    assert again == wanted


def test_sizes_are_read_by_name_and_by_numbers() -> None:
    space = ElasticSpace((384, 448), (12, 13), names={"small": Subnet(384, 12)})
    assert space.select("448x13,small,384x12") == [Subnet(384, 12), Subnet(448, 13)]
    assert len(space.select("all")) == 4
    with pytest.raises(UsageError, match=r"400x12.*384, 448.*small = 384x12"):
        space.parse("400x12")


@pytest.mark.parametrize(
    "subnet",
    [Subnet(400, 12), Subnet(384, 25), Subnet(384, 9), Subnet(2048, 24), Subnet(384, (3, 4))],
)
def test_a_size_that_is_not_in_the_space_is_refused(subnet: Subnet) -> None:
    assert VIT_L.require(Subnet(448, 13)) == Subnet(448, 13)
    with pytest.raises(ValueError, match=rf"size {subnet} is not in the space: .*384, 448, .*1024"):
        VIT_L.require(subnet)
