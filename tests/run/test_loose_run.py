"""A folder of images through the training program: the same run as from its shards."""

from pathlib import Path

import pytest

from data_tools import folder
from tests.run.test_training import command, losses, run
from tests.support import shards as made


@pytest.mark.slow
def test_a_run_from_files_is_that_from_their_shards_and_other_files_are_noticed(tmp_path: Path):
    for number in range(40):
        part = "val" if number % 4 == 0 else "train"
        made.save(tmp_path / part / f"kind{number % 2}" / f"{number}.jpg", number)
    for part in ("train", "val"):
        out = tmp_path / "shards" / part
        made.run(folder, "--root", tmp_path / part, "--out", out, "--workers", 1)
    short = ("schedule.steps_per_epoch=4", "checkpoint.every_epochs=1", "evaluation.every_epochs=1")
    run(command(tmp_path / "shards", tmp_path / "packed", *short))
    words = command(tmp_path, tmp_path / "loose", *short)
    run(words)
    assert losses(tmp_path / "loose") == losses(tmp_path / "packed")
    kept = sorted(
        path.name for path in (tmp_path / "loose" / "image_indexes").glob("images-*/index.npy")
    )
    assert len(kept) == 2  # of train and val
    (tmp_path / "train" / "kind0" / "2.jpg").unlink()
    made.save(tmp_path / "train" / "kind0" / "new.jpg", 99)
    printed = run([*words, "schedule.epochs=2"], status=1)
    assert "1 added (kind0/new.jpg), 1 removed (kind0/2.jpg); a run goes on with the" in printed
