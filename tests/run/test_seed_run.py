"""SEED through the programs: the shipped recipe trains, continues, and its student is deployed."""

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from poa_ds.cli import main
from tests.run.test_training import run, shards  # noqa: F401 - a fixture
from tests.support.teachers import make_teacher

SEED = [
    *("--config", "ds_configs/photos_seed.yaml", "distill.queue=16", "distill.hidden=32"),
    *("log_every=1", "tracking=none", "report=false", "schedule.epochs=1"),
    "batch={slots: 2, images_per_slot: 4}",
    *("schedule.steps_per_epoch=6", "checkpoint.every_epochs=0.5", "data.workers=0"),
    *("evaluation.every_epochs=0", "evaluation.at_start=false", "evaluation.batch_size=32"),
    *("evaluation.k=[5]", "evaluation.report_k=5"),
]


@pytest.mark.slow  # three trainings
def test_the_shipped_recipe_trains_continues_and_deploys_its_students(
    shards: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "run"
    make_teacher(tmp_path / "teacher")
    places = [f"data.train={shards}/train", f"evaluation.queries={shards}/val"]
    words = [sys.executable, "-m", "poa_ds.train", *SEED, *places, f"output_dir={out}"]
    words.append(f"distill.teacher={tmp_path / 'teacher'}")
    run(words)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    losses = [row["loss/intact_seed"] for row in rows if "loss/intact_seed" in row]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert all(row["health/own_nearest"] <= 1 for row in rows if "loss/total" in row)
    stored = load_file(out / "checkpoints" / "step00000006" / "extra.safetensors")
    assert stored["queue"].shape == (16, 48) and stored["teacher_sha256"].shape == (32,)
    [measured] = [json.loads(line) for line in (out / "knn.jsonl").open()]
    assert len(measured["knn"]) == 6
    assert main(["sizes", str(out)]) == 0 and "64x3" in capsys.readouterr().out
    plain = tmp_path / "plain"
    assert main(["extract", str(out), "--size", "small", "--out", str(plain), "--check"]) == 0
    # another teacher of the same shape, where the run goes on
    make_teacher(tmp_path / "teacher", seed=1, step=4)
    said = run([*words, "schedule.epochs=2"], status=1)
    assert "not the file that this run was begun with" in said


def test_a_plan_is_made(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    teacher = f"distill.teacher={make_teacher(tmp_path / 'teacher')}"
    words = ["plan", "--config", "photos_seed", "--nodes", "1", "--gpus", "2", teacher]
    assert main(words) == 0 and "64x3" in capsys.readouterr().out
