"""The same batches on any number of ranks and workers; damage stops the run or is replaced."""

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.data.image.photometric import draw
from poa_ds.data.image.pixels import png
from poa_ds.data.image.views import CropSpec, center_view, decode, views
from poa_ds.data.loader import eval_batches, slot_batches, train_batches
from poa_ds.data.spec import batch_spec
from poa_ds.data.store.index import SampleError, ShardFolder
from poa_ds.data.store.order import VIEWS, Order, keyed
from poa_ds.recipe import tree
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError
from tests.support.published import BATCH
from tests.support.shards import image, make_shards

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
SPEC = replace(
    BATCH,
    seed=3,
    slots=4,
    images_per_slot=3,
    crops=CropSpec(16, (0.32, 1.0), 2, 8, (0.05, 0.32), 0.5),
    masks=replace(BATCH.masks, grid=4),
    on_error="raise",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    return make_shards(tmp_path_factory.mktemp("shards") / "train")


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def leaves(batch: Batch) -> list[Tensor]:
    values = [*vars(batch).values()]
    for params in (batch.global_photometric, batch.local_photometric):
        values += vars(params).values()
    return [value for value in values if isinstance(value, Tensor)]


def same(first: Batch, second: Batch) -> bool:
    pairs = zip(leaves(first), leaves(second), strict=True)
    numbers = (first.step, first.slot, first.bad) == (second.step, second.slot, second.bad)
    return numbers and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (2, 2), (4, 0), (4, 2)])
def test_ranks_and_workers_do_not_change_a_batch(
    folder: ShardFolder, world: int, workers: int
) -> None:
    steps = 4
    expected = take(slot_batches(SPEC, folder), 4 * steps)
    assert [(b.step, b.slot) for b in expected] == [(t, s) for t in range(4) for s in range(4)]
    own = 4 // world
    for rank in range(world):
        found = take(
            slot_batches(SPEC, folder, rank=rank, world=world, workers=workers), own * steps
        )
        wanted = [batch for batch in expected if batch.slot // own == rank]
        assert all(map(same, found, wanted)) and len(found) == len(wanted)


def test_a_run_continues_where_it_stopped_on_another_number_of_ranks(folder: ShardFolder) -> None:
    whole = take(slot_batches(SPEC, folder), 28)
    later = take(slot_batches(SPEC, folder, rank=1, world=2, first_step=5, workers=1), 4)
    assert all(map(same, later, [whole[n] for n in (22, 23, 26, 27)]))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_state_alone(folder: ShardFolder, workers: int) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    take(slot_batches(SPEC, folder, workers=workers), 5)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_every_epoch_reads_every_image_once(folder: ShardFolder) -> None:
    batches = take(slot_batches(SPEC, folder), 20)  # 60 images: two epochs
    positions = torch.cat([batch.positions for batch in batches])
    assert positions.tolist() == list(range(60))
    rows = Order(30, SPEC.seed).rows(0, 60)
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.tolist() == folder.labels[rows].tolist()
    assert sorted(rows[:30]) == sorted(rows[30:]) == list(range(30))


def test_crops_and_draws_are_those_of_the_image_at_that_position(folder: ShardFolder) -> None:
    rows = Order(30, SPEC.seed).rows(0, 60)
    for batch in take(slot_batches(SPEC, folder), 20):
        for place, position in enumerate(batch.positions.tolist()):
            rng = keyed(VIEWS, SPEC.seed, position)
            draws = [draw(rng, SPEC.photometric, kind) for kind in (0, 1, 2, 2)]
            found = views(decode(folder.read(int(rows[position]))), SPEC.crops, rng)
            assert torch.equal(batch.global_crops[place::3], found.global_crops)
            assert torch.equal(batch.local_crops[place::3], found.local_crops)
            sigma = [*batch.global_photometric.sigma[place::3]]
            sigma += [*batch.local_photometric.sigma[place::3]]
            assert sigma == pytest.approx([chosen.sigma for chosen in draws])


def test_seeds_positions_and_slots_change_the_random_numbers(folder: ShardFolder) -> None:
    first, other_slot, *_ = take(slot_batches(SPEC, folder), 12)
    later = take(slot_batches(SPEC, folder, first_step=30), 1)[0]  # 12 epochs on, same place
    other_seed = next(slot_batches(replace(SPEC, seed=4), folder))
    for batch in (other_slot, later, other_seed):
        assert not torch.equal(batch.masks, first.masks)
        assert not torch.equal(batch.global_photometric.factors, first.global_photometric.factors)


def test_photometric_parameters_do_not_depend_on_the_images(
    folder: ShardFolder, tmp_path: Path
) -> None:
    other = make_shards(tmp_path / "other", count=13)
    pairs = zip(take(slot_batches(SPEC, folder), 8), slot_batches(SPEC, other), strict=False)
    for first, second in pairs:
        assert torch.equal(first.local_photometric.factors, second.local_photometric.factors)
        assert torch.equal(first.masks, second.masks)


def test_augmented_batches_are_normalised(folder: ShardFolder) -> None:
    crops = torch.cat(
        [b.augmented(SPEC.photometric).global_crops for b in take(slot_batches(SPEC, folder), 8)]
    )
    assert crops.dtype == torch.float32 and crops.isfinite().all()
    assert abs(crops.mean()) < 1 and 0.3 < crops.std() < 2


def damage(path: Path, samples: tuple[int, ...]) -> ShardFolder:
    """The folder after a bit of each of these samples was flipped."""
    folder = ShardFolder.open(path)
    for sample in samples:
        with open(path / folder.shard(sample), "r+b") as file:
            file.seek(int(folder.index[sample]["offset"]) + 60)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    return ShardFolder.open(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_stops_the_run_and_is_named(tmp_path: Path, workers: int) -> None:
    make_shards(tmp_path / "train")
    folder = damage(tmp_path / "train", (17,))
    with pytest.raises(SampleError, match="crc32") as caught:
        take(slot_batches(SPEC, folder, workers=workers), 12)
    assert caught.value.shard.endswith("train/" + folder.shard(17))
    assert caught.value.key == folder.key(17)


def test_a_damaged_image_is_replaced_and_reported(tmp_path: Path) -> None:
    make_shards(tmp_path / "train")
    folder = damage(tmp_path / "train", (4, 17))
    spec = replace(SPEC, on_error="replace", max_bad_fraction=0.1)
    expected = take(slot_batches(spec, folder), 20)
    named = {entry for batch in expected for entry in batch.bad}
    assert {(Path(shard).name, key) for shard, key, _ in named} == {
        (folder.shard(sample), folder.key(sample)) for sample in (4, 17)
    }
    assert all("crc32" in cause for _, _, cause in named)
    assert all(batch.size == 3 for batch in expected)
    for rank in range(2):
        found = slot_batches(spec, folder, rank=rank, world=2, workers=2)
        wanted = [batch for batch in expected if batch.slot // 2 == rank]
        assert all(map(same, take(found, 10), wanted))


def test_only_the_damaged_images_differ(tmp_path: Path, folder: ShardFolder) -> None:
    make_shards(tmp_path / "train")
    damaged = damage(tmp_path / "train", (4,))
    spec = replace(SPEC, on_error="replace", max_bad_fraction=0.1)
    place = Order(30, spec.seed).rows(0, 30).tolist().index(4)
    pairs = zip(take(slot_batches(spec, folder), 10), slot_batches(spec, damaged), strict=False)
    for batch, (whole, repaired) in enumerate(pairs):
        changed = (whole.global_crops != repaired.global_crops).flatten(1).any(1)
        wanted = [batch == place // 3 and crop % 3 == place % 3 for crop in range(6)]
        assert changed.tolist() == wanted
        assert torch.equal(whole.masks, repaired.masks)


def test_too_many_damaged_images_stop_the_run(tmp_path: Path) -> None:
    make_shards(tmp_path / "train")
    folder = damage(tmp_path / "train", (1, 4, 8, 17))
    spec = replace(SPEC, on_error="replace", max_bad_fraction=0.1)
    with pytest.raises(UserError, match=r"4 damaged images .* data.max_bad_fraction 0.1 of 30"):
        take(slot_batches(spec, folder), 10)


def test_the_same_damaged_image_counts_once(tmp_path: Path) -> None:
    make_shards(tmp_path / "train")
    folder = damage(tmp_path / "train", (4,))
    spec = replace(SPEC, on_error="replace")  # 1e-4 of 30 images: one
    assert len(take(slot_batches(spec, folder), 50)) == 50


def test_a_folder_without_a_readable_image_stops_the_run(tmp_path: Path) -> None:
    make_shards(tmp_path / "train", count=5)
    folder = damage(tmp_path / "train", tuple(range(5)))
    spec = replace(SPEC, on_error="replace", max_bad_fraction=1.0)
    with pytest.raises(SampleError):
        next(slot_batches(spec, folder))


def test_slots_that_do_not_divide_are_a_mistake_of_the_caller(folder: ShardFolder) -> None:
    with pytest.raises(AssertionError, match="4 slots on 3 ranks"):
        next(slot_batches(SPEC, folder, world=3))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_the_asked_samples_in_order(folder: ShardFolder, workers: int) -> None:
    ids = [5, 3, 29, 0, 5, 17, 2]
    batches = list(eval_batches(folder, ids, resize=32, crop=24, batch_size=3, workers=workers))
    assert [len(images) for images, _ in batches] == [3, 3, 1]
    for sample, found, label in zip(
        ids,
        torch.cat([images for images, _ in batches]),
        torch.cat([labels for _, labels in batches]),
        strict=True,
    ):
        number = int(folder.key(sample).removeprefix("image_"))
        assert torch.equal(found, center_view(decode(png(image(number))), 32, 24))
        assert label == number % 3


def test_evaluation_of_nothing_gives_nothing(folder: ShardFolder) -> None:
    assert list(eval_batches(folder, [], resize=32, crop=24, batch_size=3)) == []


def test_evaluation_names_a_damaged_image(tmp_path: Path) -> None:
    make_shards(tmp_path / "val")
    folder = damage(tmp_path / "val", (2,))
    with pytest.raises(SampleError, match=f"{folder.key(2)}: damaged"):
        list(eval_batches(folder, [1, 2], resize=32, crop=24, batch_size=2, workers=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_replaces_when_given_a_list(tmp_path: Path, workers: int) -> None:
    make_shards(tmp_path / "val")
    folder, bad = damage(tmp_path / "val", (2,)), []
    options = {"resize": 32, "crop": 24, "batch_size": 2, "workers": workers}
    found = list(eval_batches(folder, [1, 2, 3], **options, bad=bad))
    assert [(Path(shard).name, key) for shard, key, _ in bad] == [(folder.shard(2), folder.key(2))]
    images, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    whole = [sample for sample in range(30) if sample != 2]
    ((every, classes),) = eval_batches(folder, whole, **options | {"batch_size": 29})
    assert torch.equal(images[0], every[1]) and torch.equal(images[2], every[2])
    substitute = [n for n in range(29) if torch.equal(every[n], images[1])]
    assert len(substitute) == 1 and classes[substitute[0]] == labels[1]
    again = eval_batches(folder, [2], **options, bad=[])
    assert torch.equal(next(again)[0][0], images[1])


def make_recipe(blur: Literal["paper", "published"]) -> Recipe:
    """What SPEC says, in the words of a recipe."""
    return Recipe(
        seed=3,
        backbone=tree.Backbone(patch_size=4),
        batch=tree.Batch(slots=4, images_per_slot=3),
        crops=tree.Crops(global_size=16, local_count=2, local_size=8),
        augmentation=tree.Augmentation(blur=blur),
        data=tree.Data(on_error="raise"),
    )


def test_a_recipe_gives_the_same_batches_as_its_specification(folder: ShardFolder) -> None:
    assert batch_spec(make_recipe("paper")) == SPEC
    found = take(train_batches(make_recipe("paper"), folder, rank=1, world=2, first_step=1), 3)
    expected = take(slot_batches(SPEC, folder, rank=1, world=2, first_step=1), 3)
    assert all(map(same, found, expected))


def test_published_blur_is_inverted() -> None:
    assert batch_spec(make_recipe("published")).photometric.blur == (0.0, 0.9, 0.5)


HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.loader import slot_batches
from tests.data.test_loader import SPEC
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[2])
    batches = slot_batches(SPEC, ShardFolder.open(Path(sys.argv[1])), workers=2)
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "method",
    ["fork", pytest.param("forkserver", marks=pytest.mark.slow)],  # the latter from Python 3.14 on
)
def test_loader_processes_end_with_a_rank_that_is_killed(
    method: str, folder: ShardFolder, tmp_path: Path
) -> None:
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    paths = [str(ROOT), str(ROOT / "kernels")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, str(script), str(folder.path), method]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        workers = [int(word) for word in holder.stdout.readline().split()]
        assert len(workers) == 2 and all(map(_runs, workers))
        holder.kill()
    deadline = time.monotonic() + 60
    while any(map(_runs, workers)):
        assert time.monotonic() < deadline, "loader processes stay"
        time.sleep(0.2)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
