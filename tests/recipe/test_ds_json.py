"""The DeepSpeed configuration: filled in, passed through, and refused where two places disagree."""

from pathlib import Path

import pytest

from poa_ds.recipe import ds_json, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError

FOLDER = Path(__file__).parents[2] / "ds_configs"


def small(**top: object) -> Recipe:
    return load.from_dict({"batch": {"slots": 8, "images_per_slot": 4}, **top})


def stage(number: int, **rest: object) -> dict:
    return {"zero_optimization": {"stage": number}, **rest}


def test_the_recipe_fills_in_what_it_owns_and_the_file_keeps_the_rest() -> None:
    file = stage(2, wall_clock_breakdown=True, bf16={"check_grad_overflow": False})
    file["zero_optimization"]["reduce_bucket_size"] = 10
    merged = ds_json.resolved(small(), file, 4)
    assert merged == {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 10},
        "wall_clock_breakdown": True,
        "train_micro_batch_size_per_gpu": 4,
        "train_batch_size": 32,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    assert "train_batch_size" not in file and file["bf16"] == {"check_grad_overflow": False}


def test_fp32_and_whole_batches_leave_the_accumulation_type_alone() -> None:
    assert "data_types" not in ds_json.resolved(small(), stage(3), 8)
    merged = ds_json.resolved(small(precision="fp32"), stage(1), 1)
    assert "data_types" not in merged and merged["gradient_accumulation_steps"] == 8
    own = ds_json.resolved(small(), stage(1, data_types={"grad_accum_dtype": "bf16"}), 1)
    assert own["data_types"] == {"grad_accum_dtype": "bf16"}


@pytest.mark.parametrize(
    "same", [{"train_batch_size": 32}, {"gradient_clipping": "auto"}, {"bf16": {"enabled": "auto"}}]
)
def test_the_same_number_or_auto_is_accepted(same: dict) -> None:
    assert ds_json.resolved(small(), stage(2, **same), 8)["train_batch_size"] == 32


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"train_batch_size": 64}, ["train_batch_size", "64", "32", "batch.slots 8"]),
        ({"gradient_clipping": 1.0}, ["gradient_clipping", "1.0", "optimizer.clip_backbone"]),
        ({"gradient_accumulation_steps": 4}, ["4", "1", "batch.slots 8 on 8 ranks"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled", "precision bf16"]),
        ({"bf16": {"check_grad_overflow": True}}, ["bf16.check_grad_overflow", "max_bad_steps"]),
        ({"zero_allow_untested_optimizer": False}, ["zero_allow_untested_optimizer"]),
        ({"optimizer": {"type": "Adam"}}, ["'optimizer'", "section `optimizer`"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["'scheduler'", "section `schedule`"]),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, ["masters are fp32"]),
        ({"bf16": True}, ["bf16", "expected an object"]),
    ],
)
def test_a_conflict_names_both_places(extra: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        ds_json.resolved(small(), stage(2, **extra), 8, source="my.json")
    assert all(word in str(error.value) for word in ["my.json", *words]), str(error.value)


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param", "cpu_offload"])
def test_offload_is_refused_by_name(key: str) -> None:
    file = stage(2)
    file["zero_optimization"][key] = True if key == "cpu_offload" else {"device": "cpu"}
    with pytest.raises(UsageError, match=key):
        ds_json.resolved(small(), file, 8)
    file["zero_optimization"][key] = {"device": "none"}
    ds_json.resolved(small(), file, 8)


@pytest.mark.parametrize(("precision", "world"), [("bf16", 1), ("fp32", 2)])
def test_stage_0_is_for_one_process_in_fp32(precision: str, world: int) -> None:
    with pytest.raises(UsageError, match=r"ds_configs/zero1\.json"):
        ds_json.resolved(small(precision=precision), {}, world)
    ds_json.resolved(small(precision="fp32"), {}, 1)


def test_sums_in_bf16_are_refused_unless_the_file_asks_for_them() -> None:
    with pytest.raises(UsageError, match=r"zero2\.json"):
        ds_json.resolved(small(), stage(1), 4)
    with pytest.raises(UsageError, match="use stage 2 or 3"):
        ds_json.resolved(small(), stage(1, data_types={"grad_accum_dtype": "fp32"}), 8)
    ds_json.resolved(small(), stage(1), 8)


@pytest.mark.parametrize("bad", [4, "two", True, None])
def test_an_impossible_stage_is_refused(bad: object) -> None:
    with pytest.raises(UsageError, match=r"zero_optimization\.stage"):
        ds_json.resolved(small(), stage(bad), 8)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_the_shipped_deepspeed_files_are_taken(number: int) -> None:
    file = ds_json.read(FOLDER / f"zero{number}.json")
    merged = ds_json.resolved(small(precision="fp32"), file, 1 if number == 0 else 8)
    assert merged["zero_optimization"]["stage"] == number


def test_a_damaged_deepspeed_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    for text in ("{", "[1]", '{"a": 1, "a": 2}'):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"ds\.json"):
            ds_json.read(path)
    with pytest.raises(UsageError, match=r"absent\.json"):
        ds_json.read(tmp_path / "absent.json")
    assert ds_json.read(None) == {}
