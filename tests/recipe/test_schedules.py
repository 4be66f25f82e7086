"""The schedules against the published implementation's numbers and against plain numpy arrays."""

import json
from math import sqrt

import numpy as np
import pytest

from poa_ds.recipe.schedules import Schedules, linear, stretched
from tests.conftest import shared


def golden() -> dict:
    return json.loads((shared("golden/06_schedules_groups") / "case.json").read_text())


def published(recipe: dict) -> Schedules:
    """Our schedules from the published recipe's keys, its 32 ranks and its epoch length."""
    optim, teacher, train = (recipe["config"][key] for key in ("optim", "teacher", "train"))
    epoch = train["OFFICIAL_EPOCH_LENGTH"]
    images = train["batch_size_per_gpu"] * 32
    return Schedules(
        total_steps=optim["epochs"] * epoch,
        warmup_steps=optim["warmup_epochs"] * epoch,
        freeze_steps=optim["freeze_last_layer_epochs"] * epoch,
        ibot_start_step=optim["ibot_activate_epochs"] * epoch,
        temperature_steps=teacher["warmup_teacher_temp_epochs"] * epoch,
        stretch=optim["iter_num_scale"],
        lr=optim["base_lr"] * sqrt(images / 1024),
        min_lr=optim["min_lr"],
        weight_decay=optim["weight_decay"],
        weight_decay_end=optim["weight_decay_end"],
        momentum=teacher["momentum_teacher"],
        momentum_end=teacher["final_momentum_teacher"],
        temperature_start=teacher["warmup_teacher_temp"],
        temperature=teacher["teacher_temp"],
    )


@pytest.mark.parametrize("arch", ["vit", "swin", "resnet"])
def test_every_value_equals_the_published_schedule(arch: str) -> None:
    recipe = golden()["recipes"][arch]
    schedules = published(recipe)
    assert schedules.total_steps == recipe["total_iters"]
    assert schedules.ibot_start_step == recipe["ibot_activate_iter"]
    values = [schedules.at(step) for step in recipe["iterations"]]
    ours = {
        "lr": [v.lr for v in values],
        "wd": [v.weight_decay for v in values],
        "momentum": [v.momentum for v in values],
        "teacher_temp": [v.teacher_temperature for v in values],
        "last_layer_lr": [v.lr * v.last_layer_factor for v in values],
    }
    for name, expected in recipe["values"].items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-12, atol=0, err_msg=name)


@pytest.mark.parametrize("toy", ["a", "b"])
def test_stretched_cosines_equal_the_published_toy_arrays(toy: str) -> None:
    case = golden()["toy_cosine"][toy]
    kwargs = case["kwargs"]
    ours = [
        stretched(
            step,
            kwargs["total_iters"],
            start=kwargs["base_value"],
            end=kwargs["final_value"],
            stretch=kwargs["iter_num_scale"],
            warmup_steps=kwargs.get("warmup_iters", 0),
        )
        for step in range(kwargs["total_iters"])
    ]
    np.testing.assert_allclose(ours, case["schedule"], rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_linear_equals_numpy_linspace(steps: int) -> None:
    ours = [linear(step, steps, start=0.04, end=0.07) for step in range(steps)]
    np.testing.assert_allclose(ours, np.linspace(0.04, 0.07, steps), rtol=1e-15)


def short(**changes: float) -> Schedules:
    numbers = {
        "total_steps": 10,
        "warmup_steps": 2,
        "freeze_steps": 3,
        "ibot_start_step": 4,
        "temperature_steps": 0,
        "stretch": 1.0,
        "lr": 1.0,
        "min_lr": 0.0,
        "weight_decay": 0.1,
        "weight_decay_end": 0.2,
        "momentum": 0.9,
        "momentum_end": 1.0,
        "temperature_start": 0.04,
        "temperature": 0.07,
    }
    return Schedules(**(numbers | changes))


def test_freezing_and_ibot_switch_exactly_at_their_steps() -> None:
    values = [short().at(step) for step in range(10)]
    assert [v.last_layer_factor for v in values] == [0.0] * 3 + [1.0] * 7
    assert [v.ibot_active for v in values] == [False] * 4 + [True] * 6
    assert {v.teacher_temperature for v in values} == {0.07}


def test_the_cosine_starts_after_the_warmup_and_passes_its_middle() -> None:
    schedules = short()
    assert [schedules.at(step).lr for step in (0, 1, 2)] == [0.0, 1.0, 1.0]
    assert schedules.at(6).lr == pytest.approx(0.5)  # half of the 8 steps after the warm-up
    assert schedules.at(10).lr == 0.0


def test_a_run_that_is_all_warmup_never_divides_by_zero() -> None:
    schedules = short(warmup_steps=10, temperature_steps=50)
    assert schedules.at(9).lr == 1.0
    assert schedules.at(10).lr == 0.0
    assert schedules.at(11).teacher_temperature < 0.07
