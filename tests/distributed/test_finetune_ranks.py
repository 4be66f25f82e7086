"""`poa-ds eval finetune` as it is used: stopped and continued, and on two ranks under ZeRO 2."""

import json
import shutil
from pathlib import Path

import pytest

from poa_ds.evaluate import score_rows
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.run import exit_status
from tests.distributed.programs.launch import PATIENCE_SECONDS, _run, environment, fork, free_port
from tests.support.same_run import SUMS
from tests.support.shards import make_shards
from tests.support.teachers import make_teacher

PROGRAM = "tests.distributed.programs.finetuned"
OPTIONS = "--sizes 32x2 --batch 16 --epochs 4 --lr 0.005 --workers 0 --slots 4"


def finetuned(run: Path, shards: Path, *more: str, world: int = 1, stop: int = 0) -> set[int]:
    """The exit statuses of the ranks."""
    words = [str(stop), str(run), *OPTIONS.split(), *more]
    words += ["--train", str(shards / "train"), "--val", str(shards / "val")]
    port = free_port()
    ranks = [
        fork(_run, environment(rank, world, port), run / f"rank{rank}.log", PROGRAM, words)
        for rank in range(world)
    ]
    for rank in ranks:
        rank.join(PATIENCE_SECONDS)
    return {rank.exitcode for rank in ranks}


def measured(run: Path) -> tuple[list[ScoreRow], dict[int, dict[str, float]]]:
    """(the run's rows, the fine-tuning's losses by step)."""
    [own] = (run / "finetune").iterdir()
    losses: dict[int, dict[str, float]] = {}
    for line in (own / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        same = {k: v for k, v in row.items() if k.startswith(("loss/", "finetune/"))}
        losses.setdefault(row["step"], {}).update(same)
    return score_rows.read(run / "evaluations.jsonl"), losses


@pytest.mark.slow
def test_stopped_and_continued_and_on_two_ranks_it_is_the_same(tmp_path: Path) -> None:
    make_shards(tmp_path / "train", 48)
    make_shards(tmp_path / "val", 21, first=60)
    one, two = tmp_path / "one", tmp_path / "two"
    make_teacher(one, tracking="none", log_every=1)
    shutil.copytree(one, two)
    assert finetuned(one, tmp_path, stop=5) == {exit_status.STOPPED}
    assert not (one / "evaluations.jsonl").exists()
    assert finetuned(one, tmp_path) == {exit_status.DONE}
    assert "continues at step 5" in (one / "rank0.log").read_text()
    assert finetuned(two, tmp_path, "--deepspeed_config", "zero2", world=2) == {exit_status.DONE}
    (rows, losses), (other_rows, other_losses) = measured(one), measured(two)
    assert sorted(losses) == sorted(other_losses) == list(range(1, 13))
    for step, terms in losses.items():
        assert other_losses[step] == pytest.approx(terms, rel=SUMS), step
    assert losses[12]["loss/cross_entropy"] < losses[1]["loss/cross_entropy"]
    assert [row.name for row in rows] == ["finetune_top1", "finetune_top1_best_on_val"]
    assert [row.value for row in rows] == [row.value for row in other_rows]
    assert {row.setting["at step"] for row in rows} <= {3, 6, 9, 12}
    assert rows[0].value == pytest.approx(losses[12]["finetune/top1"])
    assert finetuned(one, tmp_path) == {exit_status.DONE}  # nothing is left to do
    assert "has it already" in (one / "rank0.log").read_text()
    assert measured(one)[0] == rows


@pytest.mark.slow
def test_several_sizes_are_trained_one_after_the_other(tmp_path: Path) -> None:
    make_shards(tmp_path / "train", 48)
    make_shards(tmp_path / "val", 21, first=60)
    make_teacher(tmp_path / "run", tracking="none", log_every=1)
    more = ("--sizes", "32x2,48x3", "--epochs", "1")
    assert finetuned(tmp_path / "run", tmp_path, *more) == {exit_status.DONE}
    found = score_rows.read(tmp_path / "run" / "evaluations.jsonl")
    assert [row.size for row in found if row.name == "finetune_top1"] == ["32x2", "48x3"]
