"""Swin and ResNet over gloo: two ranks with different sizes per slot equal one process."""

from pathlib import Path

import pytest

from tests.distributed.programs.launch import launch
from tests.distributed.test_stages import WORKER
from tests.support.same_run import assert_same_run

BACKBONES = {
    "swin": {
        "name": "swin",
        "width": {"min": 16, "max": 32, "step": 8},
        "stages": [[1, 1], [1, 1], [2, 4], [1, 1]],
        "patch_size": 2,
        "head_dim": 8,
        "window": 3,
        "drop_path": 0.3,
    },
    "resnet": {
        "name": "resnet",
        "width": {"min": 8, "max": 16, "step": 4},
        "stages": [[1, 1], [1, 2], [1, 3], [1, 1]],
        "patch_size": 4,
        "norm_groups": 4,
    },
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind == "swin" else kind for kind in BACKBONES],
)
def test_two_ranks_of_zero_2_and_3_equal_one_process(kind: str, tmp_path: Path) -> None:
    recipe = {"backbone": BACKBONES[kind]}
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 3], recipe=recipe)["0"]
    two = launch(WORKER, 2, tmp_path / "two", stages=[2, 3], steps=[0, 3], recipe=recipe)
    assert all(len(set(record["sizes"])) > 1 for record in one[:1])  # slots differ
    assert one[0]["teacher"] != one[2]["teacher"] and one[2]["terms"]["intact_ibot"] > 0
    for records in two.values():
        assert_same_run(records, one)


@pytest.mark.slow
def test_what_dinov3_has_passes_every_stage(tmp_path: Path) -> None:
    """Registers, gated MLPs, rotary positions and keys without a bias; blocks computed again."""
    recipe = {"backbone__registers": 2, "backbone__swiglu": 88, "backbone__norm_eps": 1e-5}
    recipe |= {"backbone__positions": "rope", "backbone__qkv_bias": "no_key"}
    recipe |= {"backbone__activation_checkpointing": True}
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 3], recipe=recipe)["0"]
    two = launch(WORKER, 2, tmp_path / "two", stages=[1, 2, 3], steps=[0, 3], recipe=recipe)
    assert one[0]["teacher"] != one[2]["teacher"]
    for records in two.values():
        assert_same_run(records, one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BACKBONES)
def test_checkpoints_load_on_other_ranks_and_stages(kind: str, tmp_path: Path) -> None:
    recipe = {"backbone": BACKBONES[kind], "backbone__activation_checkpointing": True}
    two = launch(WORKER, 2, tmp_path / "two", stages=[3], steps=[0, 2], save=4, recipe=recipe)
    source = [str(tmp_path / "two" / "stage3")]
    got = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[2, 4], load=source, recipe=recipe)
    for records in got.values():
        assert_same_run(records, two["3+"])
