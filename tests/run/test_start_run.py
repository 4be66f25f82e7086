"""`start` through the training program: a new run has its weights, one that goes on ignores it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.run.test_training import command, run, shards  # noqa: F401 - a fixture


@pytest.mark.slow
def test_a_run_begins_where_another_ended_and_continues_without_it(
    shards: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    short = ("schedule.steps_per_epoch=4", "checkpoint.every_epochs=1", "evaluation.every_epochs=1")
    run(command(shards, first, *short))
    [*_, teacher] = sorted((first / "teacher").glob("step*"))
    (teacher / "LICENSE.weights").write_text("Of the weights.")
    words = command(shards, second, *short, f"start={first}")
    assert f"begins with    {first}" in run(words)
    ended, begun = ((folder / "knn.jsonl").read_text().splitlines() for folder in (first, second))
    assert (
        json.loads(begun[0])["knn"] == json.loads(ended[-1])["knn"] != json.loads(ended[0])["knn"]
    )
    # what it gains is counted from random weights, not from those that it begins with
    random, fresh = (json.loads(rows[0])["floors"]["random_weights"] for rows in (begun, ended))
    assert random == fresh == json.loads(ended[0])["knn"]
    [*_, teacher] = sorted((second / "teacher").glob("step*"))
    assert (teacher / "LICENSE.weights").read_text() == "Of the weights."
    shutil.rmtree(first)
    printed = run([*words, "schedule.epochs=2"])
    assert "continues at step 4" in printed and "begins with" not in printed
    fresh = command(shards, tmp_path / "third", *short, f"start={first}")
    assert f"start {first}: there is no folder" in run(fresh, status=1)
