"""Batches of images of five channels of 16 bits: from files and shards, changed and normalised."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from data_tools import check, folder
from poa_ds.data.image.photometric import Photometric, apply, draw
from poa_ds.data.image.pixels import png
from poa_ds.data.image.values import Values
from poa_ds.data.image.views import center_view, decode
from poa_ds.data.loader import eval_batches, slot_batches
from poa_ds.data.places import open_folder
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.order import keyed
from poa_ds.recipe.tree import Data
from poa_ds.system.errors import UserError
from tests.data.test_loader import SPEC, same, take
from tests.support import tiffs
from tests.support.shards import image, run

FIVE = Data(channels=5, range=(0, 4095))
COLOURS = replace(
    SPEC.photometric, saturation=0.0, hue=0.0, grey=0.0, mean=(0.5,) * 5, std=(0.25,) * 5
)
MEASURED = replace(SPEC, values=Values.of(FIVE), photometric=COLOURS)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tiffs.tree(tmp_path / "mine")


def test_files_and_their_shards_give_the_same_batches_on_any_ranks(tree: Path, tmp_path: Path):
    run(folder, "--root", tree, "--out", tmp_path / "shards", "--workers", 1, "--as-is")
    run(check, tmp_path / "shards", "--workers", 1)
    packed, files = (open_folder(str(x), FIVE, tmp_path) for x in (tmp_path / "shards", tree))
    assert len(files) == len(packed) == 12
    expected = take(slot_batches(MEASURED, packed), 8)
    assert expected[0].global_crops.shape == (6, 5, 16, 16)
    assert expected[0].global_crops.dtype == torch.float32
    for world, workers in ((1, 0), (2, 0), (1, 2)):
        found = [
            take(slot_batches(MEASURED, files, rank=rank, world=world, workers=workers), 8 // world)
            for rank in range(world)
        ]
        wanted = [x for rank in range(world) for x in expected if x.slot // (4 // world) == rank]
        assert all(map(same, itertools.chain(*found), wanted))
    again = take(slot_batches(MEASURED, files, first_step=1), 4)
    assert all(map(same, again, expected[4:]))


def test_crops_stay_within_the_range_and_are_normalised_once(tree: Path, tmp_path: Path) -> None:
    [batch] = take(slot_batches(MEASURED, open_folder(str(tree), FIVE, tmp_path)), 1)
    assert 0 <= batch.global_crops.min() and batch.global_crops.max() <= 255
    before = batch.global_crops.clone()
    done = batch.augmented(COLOURS)
    assert torch.equal(batch.global_crops, before)
    assert done.global_crops.min() >= -2 and done.global_crops.max() <= 2
    assert done.augmented(COLOURS) is done


def test_three_channels_of_floats_are_changed_as_their_bytes_are() -> None:
    spec = SPEC.photometric
    draws = [draw(keyed(1, n), spec, n % 3) for n in range(12)]
    crops = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    params = Photometric.stack(draws)
    torch.testing.assert_close(apply(crops.float(), params, spec), apply(crops, params, spec))


def test_five_channels_are_changed_as_each_of_them_alone() -> None:
    draws = [draw(keyed(2, n), COLOURS, n % 3) for n in range(12)]
    crops, params = torch.rand(12, 5, 16, 16) * 255, Photometric.stack(draws)
    whole = apply(crops, params, COLOURS)
    one = replace(COLOURS, mean=(0.5,), std=(0.25,))
    for channel in range(5):
        alone = apply(crops[:, channel : channel + 1], params, one)
        torch.testing.assert_close(whole[:, channel : channel + 1], alone)
    assert not torch.allclose(whole, (crops / 255 - 0.5) / 0.25)


def test_a_picture_of_bytes_is_seen_as_ever_when_a_range_says_what_it_says(tmp_path: Path) -> None:
    content = png(image(4))
    plain = center_view(decode(content), 24, 16)
    read = torch.from_numpy(Values(3, (0, 255)).read(content))
    assert (center_view(read, 24, 16) - plain).abs().max() <= 1  # bytes are rounded between passes


def test_evaluation_reads_them_too_and_a_wrong_file_is_replaced(tree: Path, tmp_path: Path) -> None:
    Image.fromarray(image(1)).save(tree / "ant" / "colour.png")
    images, bad = open_folder(str(tree), FIVE, tmp_path), []
    [(found, labels)] = eval_batches(images, range(13), resize=20, crop=16, batch_size=20, bad=bad)
    assert found.shape == (13, 5, 16, 16) and found.dtype == torch.float32
    [(_, key, cause)] = bad
    assert "colour" in key and "3 channels, data.channels is 5" in cause
    assert labels.tolist().count(-1) == 0
    with pytest.raises(UserError, match="3 channels"):
        list(eval_batches(images, range(13), resize=20, crop=16, batch_size=20))


def test_measurements_have_an_index_of_their_own_and_say_what_changed(
    tree: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    Image.fromarray(image(1)).save(tree / "ant" / "colour.png")
    assert len(open_folder(str(tree), Data(), kept)) == 1
    before = open_folder(str(tree), FIVE, kept)
    assert len(before) == 13 and len(open_folder(str(tree), Data(), kept)) == 1
    tiffs.write(tree / "ant" / "new.tif", tiffs.numbers(77))
    now = open_folder(str(tree), FIVE, kept)
    assert "1 added (ant/new.tif)" in now.changes_since(before.hash)


def test_what_stays_as_it_is_is_what_check_and_a_second_call_find(tree: Path, tmp_path: Path):
    tiffs.write(tree / "ant" / "pages.tif", np.zeros((8, 8), np.uint8), planarconfig=None)
    with tifffile.TiffWriter(tree / "bee" / "pages.tif") as out:  # with an overview
        out.write(tiffs.numbers(50), photometric="minisblack", planarconfig="separate")
        out.write(np.zeros((4, 4), np.uint8), photometric="minisblack")
    for ending in ("jpg", "webp", "png", "bmp", "ppm"):
        Image.fromarray(image(3)).save(tree / "ant" / f"x.{ending}")
    words = ["--root", tree, "--out", tmp_path / "shards", "--workers", 1, "--as-is"]
    run(folder, *words)
    whole = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.tar")}
    run(check, tmp_path / "shards", "--workers", 1)
    assert len(ShardFolder.open(tmp_path / "shards")) == 12 + 2 + 3
    refused = (tmp_path / "shards" / "rejected.jsonl").read_text()
    assert refused.count("as a PNG alone") == 2
    run(folder, *words)
    assert whole == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").glob("*.tar")}
