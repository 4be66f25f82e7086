"""Real DeepSpeed engines over gloo: any ranks and any ZeRO stage compute the same run.

Slots draw different sizes in the same step. Four steps: longer runs drift by summation order.
"""

import json
from pathlib import Path

import pytest

from tests.distributed.programs.launch import launch
from tests.support.same_run import assert_same_run

WORKER = "tests.distributed.programs.worker"
STAGES = (1, 2, 3)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """Stage 0 in one process; a checkpoint after step 3."""
    out = tmp_path_factory.mktemp("one")
    return launch(WORKER, 1, out, stages=[0, 2], steps=[0, 3], save=5), out


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("two")
    return launch(WORKER, 2, out, stages=list(STAGES), steps=[0, 3], save=5), out


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_equal_one_process(reference: tuple, two_ranks: tuple, stage: int) -> None:
    wanted, got = reference[0]["0"], two_ranks[0][str(stage)]
    assert len(set(wanted[0]["sizes"])) > 1  # ranks train different sizes in the same step
    assert_same_run(got, wanted)


@pytest.mark.parametrize(
    "mistake",
    [
        {"schedule__momentum": 0.9 * 1.01},
        {"optimizer__beta1": 0.9 * 1.01},
        {"schedule__weight_decay": 0.04 * 1.01, "schedule__weight_decay_end": 0.4 * 1.01},
    ],
)
def test_one_per_cent_of_error_in_the_optimizer_is_noticed(
    reference: tuple, mistake: dict, tmp_path: Path
) -> None:
    wrong = launch(WORKER, 1, tmp_path, stages=[0], steps=[0, 3], recipe=mistake)["0"]
    with pytest.raises(AssertionError, match=r"weights|terms|norms"):
        assert_same_run(wrong, reference[0]["0"])


def test_a_run_moves_and_ibot_starts_at_its_step(reference: tuple) -> None:
    steps = reference[0]["0"]
    assert [s["terms"]["intact_ibot"] > 0 for s in steps] == [False, False, True]
    assert steps[0]["teacher"] != steps[1]["teacher"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_loads_on_other_ranks_and_stages(
    reference: tuple, two_ranks: tuple, stage: int, tmp_path: Path
) -> None:
    """From two ranks and each stage to one process; the next steps are the same."""
    source = two_ranks[1] / f"stage{stage}"
    got = launch(WORKER, 1, tmp_path, stages=[0, 3], steps=[3, 5], load=[str(source)])
    for records in got.values():
        assert_same_run(records, two_ranks[0][f"{stage}+"])


def test_checkpoints_load_on_two_ranks_and_resume_bit_for_bit_on_the_same(
    reference: tuple, two_ranks: tuple, tmp_path: Path
) -> None:
    sources = [str(reference[1] / "stage0"), str(two_ranks[1] / "stage2")]
    got = launch(WORKER, 2, tmp_path, stages=[2, 3], steps=[3, 5], load=sources)
    for name, records in got.items():
        if name.startswith("2<") and name.endswith("stage2"):
            assert records == two_ranks[0]["2+"]  # every number, to the last bit
        else:
            assert_same_run(records, two_ranks[0]["2+"])


def test_centering_own_ibot_heads_and_activation_checkpointing_on_two_ranks(
    tmp_path: Path,
) -> None:
    recipe = {
        "objective": {"centering": "softmax"},
        "heads__separate_ibot": True,
        "backbone__activation_checkpointing": True,
    }
    plain = {**recipe, "backbone__activation_checkpointing": False}
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 4], recipe=plain)["0"]
    two = launch(WORKER, 2, tmp_path / "two", stages=[2, 3], steps=[0, 4], recipe=recipe)
    for records in two.values():
        assert_same_run(records, one)


@pytest.mark.slow
def test_heads_of_the_smaller_student_and_norms_of_each_width_on_two_ranks_and_resumed(
    tmp_path: Path,
) -> None:
    """Two steps of a slow start, in which heads and norms learn nothing, then two with them."""
    recipe = {"heads__elastic": "own", "objective": {"slow_start": 0.1}}
    recipe |= {"heads__separate_ibot": True, "backbone__norms": "per_width"}
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 4], recipe=recipe)["0"]
    assert ["elastic_dino" in step["terms"] for step in one] == [False, False, True, True]
    out = tmp_path / "two"
    two = launch(WORKER, 2, out, stages=[1, 3], steps=[0, 3], save=4, recipe=recipe)
    source = [str(out / "stage3")]
    on = launch(WORKER, 2, tmp_path / "on", stages=[2], steps=[3, 4], load=source, recipe=recipe)
    for records in ([*two["1"], *two["1+"]], [*two["3"], *two["3+"]], [*one[:3], *on.popitem()[1]]):
        for got, wanted in zip(records, one, strict=True):
            assert got["sizes"] == wanted["sizes"]
            for key in ("terms", "norms"):  # the last step's come from heads that have moved
                assert got[key] == pytest.approx(wanted[key], rel=1e-4), key


@pytest.mark.parametrize("world", [1, 2])
def test_the_teacher_moves_in_fp32_although_weights_are_bf16(world: int, tmp_path: Path) -> None:
    """At momentum 0.9999 a bf16 average would stand still."""
    recipe = {"precision": "bf16", "schedule__momentum": 0.9999, "schedule__momentum_end": 0.9999}
    got = launch(
        WORKER, world, tmp_path, stages=list(STAGES), steps=[0, 3], teacher=[0, 3], recipe=recipe
    )
    for stage, found in got.items():
        assert found["worst"] < 2e-7, stage  # rounding of one fp32 lerp per step
        assert found["moved"] > 1e-7, stage
        assert found["forward"] == 0, stage


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_nan_on_one_rank_skips_the_step_on_all(precision: str, tmp_path: Path) -> None:
    recipe = {"precision": precision}
    got = launch(WORKER, 2, tmp_path, stages=[1, 2, 3], steps=[0, 4], poison=2, recipe=recipe)
    for records in got.values():
        assert [r["finite"] for r in records] == [True, True, False, True]
        assert [r["applied"] for r in records] == [True, True, False, True]
        assert [r["skipped"] for r in records] == [0, 0, 1, 1]  # by DeepSpeed's counter
        assert records[2]["teacher"] == records[1]["teacher"] != records[3]["teacher"]
    log = (tmp_path / "rank0.log").read_text()
    assert "step 3 skipped" in log and "slot 1, size" in log and "koleo is nan" in log
    assert json.dumps(got)  # nothing in the records that is not a number
