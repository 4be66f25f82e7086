"""Several folders with weights: every lap has the asked shares, every folder its epochs."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from poa_ds.data.loader import slot_batches
from poa_ds.data.places import open_training, order_name, order_of
from poa_ds.data.store.mixture import LAP, Mixture, shares
from poa_ds.data.store.order import Order
from poa_ds.recipe import load
from poa_ds.recipe.tree import Data, Recipe
from poa_ds.system import typed_yaml
from poa_ds.system.errors import UsageError
from tests.data.test_loader import SPEC, same, take
from tests.support.shards import make_shards

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    root = tmp_path_factory.mktemp("mixture")
    for name, count in (("a", 30), ("b", 13), ("c", 7)):
        make_shards(root / name, count=count, seed=count)
    mix = {str(root / "a"): 3.0, str(root / "b"): 1.0, str(root / "c"): 0.5}
    found = open_training(Data(mix=mix))
    assert isinstance(found, Mixture)
    return found


def test_shares_add_up_and_follow_the_weights() -> None:
    assert shares([1]) == [LAP] and shares([1, 1]) == [LAP // 2] * 2
    assert shares([1, 1, 1]) == [3334, 3333, 3333]
    rng = np.random.default_rng(0)
    for _ in range(50):
        weights = rng.exponential(size=rng.integers(1, 30))
        found = shares(weights)
        assert sum(found) == LAP
        assert np.abs(np.array(found) - LAP * weights / weights.sum()).max() < 1


def test_every_lap_has_the_shares_and_every_folder_its_own_order(mixture: Mixture) -> None:
    order = order_of(mixture, 5, 0)
    rows = order.rows(0, 2 * LAP)
    folders = np.searchsorted(mixture.starts, rows, side="right") - 1
    for lap in range(2):
        counts = Counter(folders[lap * LAP : (lap + 1) * LAP].tolist())
        assert [counts[n] for n in range(3)] == mixture.shares
    for number, folder in enumerate(mixture.folders):
        own = rows[folders == number] - mixture.starts[number]
        assert np.array_equal(own, Order(len(folder), 5).rows(0, len(own)))
    assert 0.3 < np.mean(folders[1:] != folders[:-1]) < 0.8  # not one folder after the other
    assert np.array_equal(order.rows(LAP - 3, 7), rows[LAP - 3 : LAP + 4])


def test_samples_and_labels_are_those_of_the_folders(mixture: Mixture) -> None:
    assert len(mixture) == 50 and mixture.classes == ("ant", "bee", "cat") * 3
    for sample, (folder, inside) in {0: (0, 0), 29: (0, 29), 30: (1, 0), 49: (2, 6)}.items():
        part = mixture.folders[folder]
        assert mixture.read(sample) == part.read(inside)
        assert mixture.label(sample) == part.labels[inside] + 3 * folder
        assert str(mixture.error(sample, "x")) == str(part.error(inside, "x"))


def test_ranks_workers_and_a_restart_see_the_same_mixture(mixture: Mixture) -> None:
    expected = take(slot_batches(SPEC, mixture), 12)
    found = slot_batches(SPEC, mixture, rank=1, world=2, first_step=1, workers=2)
    assert all(map(same, take(found, 4), [expected[n] for n in (6, 7, 10, 11)]))
    blocks = take(slot_batches(replace(SPEC, block_shards=1), mixture), 12)
    assert not all(map(same, blocks, expected))


def test_weights_and_blocks_are_part_of_what_must_not_change(mixture: Mixture) -> None:
    other = Mixture(mixture.folders, [3, 1, 1])
    assert len({mixture.hash, other.hash, order_name(mixture, 2), order_name(mixture, 3)}) == 4
    assert order_name(mixture, 0) == mixture.hash


def test_a_weight_that_rounds_to_nothing_is_refused(mixture: Mixture) -> None:
    with pytest.raises(UsageError, match="/c has less than 1 / 10000 of the weights"):
        Mixture(mixture.folders, [1, 1, 1e-6])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": "a", "mix": {"b": 1}}, "data.train a and data.mix: give one of them"),
        ({"mix": {"b": 0}}, "data.mix.b is 0: it must be above 0"),
        ({"mix": {"b": "much"}}, "data.mix.b is 'much': expected a number"),
        ({"mix": ["b"]}, "data.mix is"),
        ({"train": "s3://x/y"}, "data.cache is empty: s3://x/y needs a folder"),
        ({"train": "a", "cache_gb": 5}, "data.cache_gb 5 needs data.block_shards"),
    ],
)
def test_wrong_recipes_say_what_is_allowed(data: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load.from_dict({"data": data})


def test_a_mixture_survives_its_printed_form() -> None:
    found = load.from_dict({"data": {"mix": {"a/x": 1, "b": 2.5}}})
    again = typed_yaml.build(Recipe(), typed_yaml.parse(load.to_yaml(found), source="x"))
    assert again == found
