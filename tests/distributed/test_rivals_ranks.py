"""DSPNet and SEED on four ranks, after kills, and in steps that are skipped."""

import signal
import time
from pathlib import Path

import pytest

from tests.distributed.programs.forks import started
from tests.distributed.programs.launch import launch
from tests.methods.test_dspnet import tree
from tests.methods.test_seed import changes
from tests.run.test_kills import kept
from tests.run.test_training import command, environment, losses, run, shards
from tests.support.same_run import assert_same_run
from tests.support.teachers import make_teacher

__all__ = ["shards"]  # the fixture
WORKER = "tests.distributed.programs.worker"
METHODS = {
    "dspnet": ("slimmable.imitation=0.5",),
    "seed": ("objective.ibot=0", "objective.koleo=0", "crops.local_count=0"),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_four_ranks_are_one_process_and_continue_to_the_bit(
    method: str, teacher: Path, tmp_path: Path
) -> None:
    recipe = tree(32, 48, 64)
    if method == "seed":
        recipe = changes(teacher, crops__local_count=3)
        recipe["distill"] |= {"local": True}
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 3], save=5, recipe=recipe)
    four = launch(WORKER, 4, tmp_path / "four", stages=[1], steps=[0, 3], save=5, recipe=recipe)
    for part, wanted in (("1", "0"), ("1+", "0+")):
        assert_same_run(four[part], one[wanted])
        assert [r["state"] for r in four[part]] == [r["state"] for r in one[wanted]]
    source = [str(tmp_path / "four" / "stage1")]
    again = launch(
        WORKER, 4, tmp_path / "again", stages=[1], steps=[3, 5], load=source, recipe=recipe
    )
    assert [*again.values()] == [four["1+"]]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_kill_changes_nothing(method: str, teacher: Path, shards: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    more = [*METHODS[method], f"objective.method={method}", "checkpoint.every_epochs=0.25"]
    more += ["schedule.steps_per_epoch=16", "evaluation.queries="]
    if method == "seed":
        more += [f"distill.teacher={teacher}", "distill.queue=16", "distill.hidden=32"]
    run(command(shards, whole, *more))
    kill_after_a_checkpoint(command(shards, out, *more), out)
    run(command(shards, out, *more))
    assert losses(out) == losses(whole)
    assert kept(out) == kept(whole)
    last = Path("checkpoints", "step00000016", "extra.safetensors")
    if method == "seed":
        assert (out / last).read_bytes() == (whole / last).read_bytes()


def kill_after_a_checkpoint(words: list[str], out: Path) -> None:
    process = started(words, environment(), out.with_suffix(".txt"))
    while process.is_alive() and not (out / "checkpoints" / "step00000004").is_dir():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run was done before the kill: it is too short"


@pytest.mark.slow
def test_a_step_that_is_skipped_leaves_the_queue_alone(teacher: Path, tmp_path: Path) -> None:
    recipe = changes(teacher)
    found = launch(WORKER, 1, tmp_path, stages=[0], steps=[0, 5], poison=2, recipe=recipe)["0"]
    assert [r["applied"] for r in found] == [True, True, False, True, True]
    queues = [r["state"]["queue"] for r in found]
    assert queues[2] == queues[1]
    assert len(set(queues)) == 4
