"""What a run never does although its recipe names it is said, and nothing else is."""

from pathlib import Path

import pytest

from poa_ds.recipe import load
from poa_ds.recipe.omissions import omissions

FOLDER = Path(__file__).parents[2] / "ds_configs"
# 20 steps
SHORT = {
    "schedule": {"steps_per_epoch": 10, "epochs": 2, "warmup_epochs": 0, "ibot_start_epoch": 1},
    "checkpoint": {"every_epochs": 1},
    "evaluation": {"queries": "q", "every_epochs": 1},
}
LONG = {"schedule.teacher_temperature_epochs": 2}


def said(**changed: object) -> list[str]:
    tree = {section: dict(keys) for section, keys in SHORT.items()}
    for key, value in (LONG | changed).items():
        section, _, name = key.partition(".")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return omissions(load.from_dict(tree), 0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"schedule.ibot_start_epoch": 2}, ["iBOT never starts", "ibot_start_epoch 2", "20 steps"]),
        ({"schedule.warmup_epochs": 2}, ["the learning rate never falls", "warmup_epochs 2"]),
        (
            {"schedule.freeze_last_layer_epochs": 2},
            ["prototypes are never trained", "freeze_last_layer_epochs 2"],
        ),
        (
            {"schedule.teacher_temperature_epochs": 2.1},
            ["temperature never reaches 0.07", "21 steps"],
        ),
        ({"evaluation.every_epochs": 2.1}, ["no evaluation before the end", "21 steps"]),
        ({"checkpoint.every_epochs": 3}, ["no checkpoint before the end", "30 steps"]),
        ({"checkpoint.keep_every_epochs": 3}, ["kept for good", "keep_every_epochs 3"]),
        ({"log_every": 21}, ["no metrics before the end", "log_every 21"]),
        (
            {"evaluation.online": {"labels": True, "every_steps": 21}},
            ["online probe learns nothing", "every_steps 21", "20"],
        ),
        (
            {"evaluation.online": {"labels": True, "every_steps": 4}},
            ["most rows have no online/top1", "log_every 10", "every_steps 4"],
        ),
        ({"objective.dino": 0, "objective.ibot": 0, "objective.koleo": 0}, ["nothing is learned"]),
        ({"objective.intact_weight": 0}, ["largest size learns nothing", "intact_weight is 0"]),
        ({"objective.intact_weight": 1}, ["smaller sizes learn nothing", "intact_weight is 1"]),
        ({"schedule.momentum": 1, "schedule.momentum_end": 1}, ["teacher never moves"]),
        ({"evaluation.queries": "", "evaluation.bank": "b"}, ["no evaluation", "bank is b"]),
        ({"masks.probability": 0}, ["iBOT learns nothing", "masks.probability 0"]),
        ({"masks.ratio": [0, 0]}, ["iBOT learns nothing", "masks.ratio [0.0, 0.0]"]),
        (
            {"tracking": "none", "mlflow.uri": "http://localhost:5000"},
            ["MLflow gets nothing", "http://localhost:5000"],
        ),
    ],
)
def test_what_will_not_happen_is_said_with_its_key(changed: dict, words: list[str]) -> None:
    [line] = said(**changed)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"schedule.ibot_start_epoch": 9, "objective.ibot": 0},
        {"objective.intact_weight": 1, "objective.method": "single"},
        {"log_every": 20},
        {"evaluation.every_epochs": 0},
        {"schedule.teacher_temperature_epochs": 9, "schedule.teacher_temperature": 0.04},
    ],
)
def test_what_happens_or_is_not_asked_for_needs_no_words(changed: dict) -> None:
    assert said(**changed) == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_leaves_nothing_out(path: Path) -> None:
    assert omissions(load.recipe(path), 1_281_167) == []
