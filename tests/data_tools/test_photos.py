"""Patches of the photographs in the box."""

from pathlib import Path

import numpy as np
import pytest

from data_tools import photos
from poa_ds.data.image.pixels import pixels
from poa_ds.data.store.index import ShardFolder
from poa_ds.system.errors import UsageError
from tests.support.shards import content, run

pytest.importorskip("skimage", reason="the photographs need the extra `demo`")


def test_photos_are_cut_from_separate_parts(tmp_path: Path) -> None:
    words = ("--train", 4, "--val", 3, "--size", 24, "--short-side", 96)
    run(photos, "--out", tmp_path / "a", *words)
    run(photos, "--out", tmp_path / "b", *words)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    train, val = ShardFolder.open(tmp_path / "a/train"), ShardFolder.open(tmp_path / "a/val")
    assert len(train.classes) == 19 and (len(train), len(val)) == (19 * 4, 19 * 3)
    assert np.bincount(train.labels).tolist() == [4] * 19
    astronaut = photos._pixels(photos.photographs()[0], 96, gray=False)
    border = int(astronaut.shape[1] * 0.7)
    for shards, part in ((train, astronaut[:, :border]), (val, astronaut[:, border:])):
        windows = np.lib.stride_tricks.sliding_window_view(part, (24, 24), axis=(0, 1))
        for sample in np.flatnonzero(shards.labels == 0):
            patch = pixels(shards.read(int(sample)))[0].transpose(2, 0, 1)
            assert (windows == patch).all((2, 3, 4)).any()


def test_grey_photos_have_equal_channels(tmp_path: Path) -> None:
    run(photos, "--out", tmp_path, "--train", 1, "--val", 1, "--gray")
    shards = ShardFolder.open(tmp_path / "train")
    for sample in range(len(shards)):
        patch = pixels(shards.read(sample))[0]
        assert (patch == patch[..., :1]).all()


@pytest.mark.parametrize("words", [("--size", 100), ("--size", 32, "--short-side", 1)])
def test_impossible_patches_are_refused(tmp_path: Path, words: tuple) -> None:
    with pytest.raises(UsageError, match=words[0]):
        run(photos, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()
