"""What a run says and does when it continues with another recipe; docs/checkpoints.md tells it.

POA_WRITE_DOCS=1 writes the table in the document anew.
"""

import os
import re
from itertools import groupby
from pathlib import Path

import pytest

from poa_ds.recipe import continuing, load
from poa_ds.recipe.continuing import GONE, RULES, Change, changes
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import leaves

DOCUMENT = Path(__file__).parents[2] / "docs" / "checkpoints.md"
HEAD = """## With another recipe

The same command may have other values when it continues a run; each change is printed. This table
is made from `poa_ds/recipe/continuing.py`, which has a rule for every key. Keys that must not
change are an error that names both values. Where the meaning of something counted changes, the
counts stay and stand for something else; epoch and learning rate before and after are printed.

| keys | may change | what it means |
|---|---|---|
"""
BEFORE = {
    "batch": {"slots": 4, "images_per_slot": 25},
    "schedule": {
        **{"epochs": 10, "warmup_epochs": 0, "stretch": 1, "base_lr": 1.0, "lr_scaling": "none"},
        **{"min_lr": 0, "momentum": 0.5, "momentum_end": 1.0, "ibot_start_epoch": 0},
    },
}


def after(**changed: object) -> tuple[list[Change], Recipe]:
    """The changes from BEFORE to it with `section__key` changed, and the recipe then."""
    tree = {section: dict(keys) for section, keys in BEFORE.items()}
    for name, value in changed.items():
        section, _, key = name.partition("__")
        if key:
            tree.setdefault(section, {})[key] = value
        else:
            tree[section] = value
    recipe = load.from_dict(tree)
    return changes(load.to_yaml(load.from_dict(BEFORE)), recipe), recipe


def test_every_key_has_one_rule_and_every_rule_has_keys() -> None:
    ruled = [key for rule in RULES for key in rule.keys.split()]
    assert sorted(ruled) == sorted(leaves(Recipe))
    assert len({(rule.kind, rule.note, rule.counted) for rule in RULES}) == len(RULES)


def test_the_document_has_the_rules() -> None:
    text = DOCUMENT.read_text()
    table = HEAD + "\n".join(_row(rule) for rule in RULES) + "\n"
    if os.environ.get("POA_WRITE_DOCS"):
        found = re.compile(r"## With another recipe\n.*?(?=\n## )", re.DOTALL)
        assert found.search(text)
        text = found.sub(lambda _: table, text)
        DOCUMENT.write_text(text)
    assert table in text


def _row(rule: continuing.Rule) -> str:
    """Keys of one section together: `schedule.` base_lr, min_lr."""
    split = [key.rpartition(".") for key in rule.keys.split()]
    keys = []
    for section, members in groupby(split, key=lambda parts: parts[0]):
        names = ", ".join(name for _, _, name in members)
        keys.append(f"`{section}`: {names}" if section else names)
    kind = "**must not**" if rule.kind == "must not" else "yes"
    return f"| {'; '.join(keys)} | {kind} | {rule} |"


def test_a_recipe_that_did_not_change_needs_no_words() -> None:
    found, recipe = after()
    assert found == [] and continuing.lines(found, recipe, step=3, images=1000) == []
    continuing.refuse(found, "step00000003")


def test_refused_keys_are_named_with_both_values_and_the_remedy_all_at_once() -> None:
    found, _ = after(backbone__head_dim=32, heads__hidden=64, log_every=3)
    with pytest.raises(UsageError) as error:
        continuing.refuse(found, "run/step00000003")
    message = str(error.value)
    for word in (
        *("run/step00000003", "backbone.head_dim: 64 -> 32", "heads.hidden: 2048 -> 64"),
        *("the parameters", "another output_dir"),
    ):
        assert word in message
    assert "log_every" not in message


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"log_every": 3}, ["log_every: 10 -> 3 (holds from here on)"]),
        ({"seed": 1}, ["seed: 0 -> 1 (changes the meaning of positions in the data"]),
        ({"evaluation__crop": 112}, ["evaluation.crop: 224 -> 112", "meaning of k-NN accuracies"]),
        ({"backbone__names": {"s": "384x12"}}, ["backbone.names.s: absent -> 384x12"]),
        ({"mlflow__experiment": "x"}, ["mlflow.experiment: (empty) -> x", "keeps its experiment"]),
        ({"data__mix": {"a": 1}}, ["data.mix.a: absent -> 1.0", "refused by their index"]),
    ],
)
def test_a_change_is_one_line(changed: dict, words: list[str]) -> None:
    found, recipe = after(**changed)
    [line] = continuing.lines(found, recipe, step=3, images=1000)
    assert all(word in line for word in words), line
    continuing.refuse(found, "")


def test_where_steps_get_another_meaning_both_are_said() -> None:
    """1,000 images, 100 per step: 10 steps are an epoch, 50 the half of 10 epochs."""
    found, recipe = after(batch__slots=2, log_every=3)
    *each, place = continuing.lines(found, recipe, step=50, images=1000)
    assert len(each) == 2 and "steps, epochs, positions in the data and schedules" in each[0]
    was, now = place.split("; it is ")
    # half a cosine from 1 to 0 and from 0.5 to 1; then a quarter of it: (1 + cos(pi / 4)) / 2
    assert was.startswith("step 50 was epoch 5 of 10 (step 100 is the last), learning rate 0.5,")
    assert was.endswith("momentum 0.75")
    assert now.startswith("epoch 2.5 of 10 (step 200 is the last), learning rate 0.854,")


def test_a_longer_run_says_where_it_stands_and_a_shorter_one_that_it_is_over() -> None:
    found, recipe = after(schedule__epochs=20)
    assert (
        "it is epoch 5 of 20 (step 200" in continuing.lines(found, recipe, step=50, images=1000)[1]
    )
    found, recipe = after(schedule__epochs=2)
    assert (
        "epoch 5 of 2 (step 20 is the last)"
        in (continuing.lines(found, recipe, step=50, images=1000)[1])
    )


def test_recipes_of_other_versions_are_compared() -> None:
    """A key that was not there yet had its default; one that is gone is named."""
    [change] = changes("log_every: 10\nbatch: {old_key: 3}\n", Recipe())
    assert str(change) == "batch.old_key: 3 -> absent" and change.rule is GONE
    continuing.refuse([change], "")
    assert "no such key" in continuing.lines([change], Recipe(), step=1, images=1)[0]
    with pytest.raises(UsageError, match="the earlier recipe is a list"):
        changes("[1]", Recipe())
