"""Every method in bf16 with activation checkpointing, under every ZeRO stage, and resumed."""

from pathlib import Path

import pytest

from poa_ds.recipe.methods import METHODS
from tests.distributed.programs.every_method import CONTINUED
from tests.distributed.programs.launch import launch
from tests.methods import test_sweet as sweet
from tests.methods.test_byol import byol_tree
from tests.methods.test_dspnet import tree as dspnet_tree
from tests.methods.test_seed import changes
from tests.support.same_run import assert_same_run
from tests.support.teachers import make_teacher

PROGRAM = "tests.distributed.programs.every_method"
HALF = 0.03  # of a term in fp32: weights and activations of 8 bits, through four blocks
ORDER = 1e-3  # of a term in bf16, from equal masters: other orders of summation (1e-7 here)

FINETUNE = {  # the intact size of the others, and what labels need
    "objective__method": "finetune",
    "objective__ibot": 0,
    "finetune__classes": 5,
    "backbone__width": {"min": 64, "max": 64, "step": 16},
    "backbone__depth": {"min": 4, "max": 4, "step": 1},
    "crops__local_count": 0,
    "masks__probability": 0,
    "optimizer__decayed": "matrices",
}


def seed_tree(teacher: Path) -> dict:
    """With every term that the method has."""
    made = changes(teacher, crops__local_count=3)
    made["distill"] |= {"local": True, "patches": 0.5, "imitation": 0.5}
    return made


def recipe_of(name: str, folder: Path) -> dict:
    found = {
        "poa": dict,
        "single": lambda: {"objective__method": "single"},
        "dspnet": lambda: dspnet_tree(32, 48, 64, slimmable={"imitation": 0.5}),
        "dspnet byol": lambda: byol_tree(32, 48, 64, slimmable={"imitation": 0.5}),
        "sweet": lambda: sweet.tree([0, 0, 0], noise=0.1),
        "finetune": lambda: FINETUNE,
        "seed": lambda: seed_tree(make_teacher(folder / "teacher")),
    }
    return found[name]() | ({} if "dspnet" in name else {"draws": "per_slot"})


NAMES = ("poa", "single", "dspnet", "dspnet byol", "sweet", "seed", "finetune")


def test_no_method_is_missing_here() -> None:
    assert {name.split()[0] for name in NAMES} == {n for n in METHODS if " " not in n}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_method_learns_in_bf16_under_every_stage_and_continues_at_any(
    name: str, tmp_path: Path
) -> None:
    recipe, out = recipe_of(name, tmp_path), tmp_path / "two"
    two = launch(PROGRAM, 2, out, recipe=recipe)
    one = launch(PROGRAM, 1, tmp_path / "one", recipe=recipe, source=str(out))
    plain, *_ = one["plain"]
    if name.split()[0] in ("poa", "sweet", "seed"):
        assert len(set(plain["sizes"])) > 1  # the ranks train other sizes in the same step
    # blocks that are computed again, on two ranks, in the same numbers
    assert_same_run(two["fp32"], one["plain"])
    for stage in "123":
        records = [*two[stage], *two[f"{stage}+"]]
        assert all(r["finite"] and r["applied"] for r in records), stage
        assert_close(records[0], plain, HALF)
        assert records[0]["teacher"] != records[-1]["teacher"]
    for stage, source in CONTINUED:
        assert_close(two[f"{stage}<{source}"][0], two[f"{source}+"][0], ORDER)
    assert two["3<3"] == two["3+"]  # to the bit
    assert_close(one["continued"][0], two["3+"][0], ORDER)


def assert_close(got: dict, wanted: dict, within: float) -> None:
    """Terms that far apart; sizes exactly."""
    assert got["sizes"] == wanted["sizes"]
    assert got["terms"] == pytest.approx(wanted["terms"], rel=within, abs=within)
