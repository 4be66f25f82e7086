"""The gradient of a step, taken apart by students."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from poa_ds.bench.contenders import Job
from poa_ds.bench.gradients import Row, compared, gradients
from poa_ds.bench.three_passes.step import ThreePasses
from poa_ds.cli import main
from poa_ds.methods.method import method
from poa_ds.recipe import load
from poa_ds.recipe.tree import Recipe
from tests.bench.test_step import TINY
from tests.support.shards import make_shards


def parts(recipe: Recipe, share: float, imitation: float | None = None) -> dict[str, Tensor]:
    work, trained = Job(recipe, {}, None, "cpu"), method(recipe)
    networks, batch, values = trained.networks(), work.batches(0)[0], work.values()
    targets, _ = trained.targets(lambda use: use(networks), [batch], values, {})
    return gradients(trained, networks, batch, targets[0], values, share, imitation=imitation)


def passes(recipe: Recipe, intact_weight: float) -> dict[str, Tensor | None]:
    """Those of the plain step, one pass after the other, whose loss weighs the students so."""
    objective = dataclasses.replace(recipe.objective, intact_weight=intact_weight, koleo=0.0)
    work = Job(dataclasses.replace(recipe, objective=objective), {}, None, "cpu")
    weights = method(recipe).networks().student.state_dict()
    plain = ThreePasses(work.recipe, work.space, weights, "cpu")
    plain.backward(work.batches(0)[:1], work.values())
    return {n: p.grad for n, p in plain.student.named_parameters()}


@pytest.mark.parametrize("share", [1.0, 0.0, 0.8])
def test_each_student_has_the_gradient_that_separate_passes_give(share: float) -> None:
    recipe = load.from_dict(TINY | {"batch": {"slots": 1, "images_per_slot": 6}})
    found, plain = parts(recipe, share), passes(recipe, share)
    for name, gradient in found.items():
        other = torch.zeros_like(gradient) if plain[name] is None else plain[name]
        assert (gradient - other).norm() <= 1e-5 * other.norm() + 1e-8, name


def test_only_what_both_use_is_compared() -> None:
    intact, elastic = torch.tensor([3.0, 0, 5, 4]), torch.tensor([0.0, 2, 0, -2])
    row = compared(3, "16x2", "backbone", intact, elastic, torch.tensor([0.0, 2, 0, 1]))
    assert row.share == 0.5 and row.intact == 4.0
    assert math.isclose(row.elastic, math.sqrt(8)) and math.isclose(row.cosine, -1 / math.sqrt(2))
    assert math.isclose(row.taught, math.sqrt(5)) and row.imitated == 3.0  # (0, -3)
    assert math.isclose(row.taught_cosine, 1 / math.sqrt(5)) and row.imitated_cosine == -1.0
    none, ones = torch.zeros(2), torch.ones(2)
    assert math.isnan(compared(0, "16x2", "heads", none, ones, ones).cosine)


def test_what_is_learned_from_the_intact_student_is_the_rest() -> None:
    """Towards the teacher: what a run has that does not imitate."""
    tree = TINY | {"batch": {"slots": 1, "images_per_slot": 6}}
    recipe = load.from_dict(tree)
    free = load.from_dict(tree | {"objective": {"imitation": 0.0}})
    taught, every, plain = parts(recipe, 0.0, imitation=0.0), parts(recipe, 0.0), parts(free, 0.0)
    assert all(torch.equal(taught[name], plain[name]) for name in plain)
    assert any(not torch.equal(taught[name], every[name]) for name in plain)


def test_a_method_without_a_smaller_student_is_refused(capsys) -> None:
    for widths in (
        [],
        ["backbone.widths=[32,96]", "backbone.names={}"],
    ):  # two students are not enough
        assert main(["bench", "gradients", "--config", "photos_dspnet", *widths]) == 2
        assert "dspnet: gradients are told apart for poa and sweet" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_looks_at_a_run(tmp_path: Path, capsys) -> None:
    shards = make_shards(tmp_path / "shards").path
    recipe = tmp_path / "recipe.yaml"
    tiny = TINY | {"data": {"train": str(shards), "workers": 0}}
    recipe.write_text(yaml.safe_dump(tiny))
    out = tmp_path / "rows.json"
    words = ["--config", str(recipe), "--steps", "5", "--every", "2", "--json", str(out)]
    assert main(["bench", "gradients", *words]) == 0
    rows = [Row(**row) for row in json.loads(out.read_text())]
    assert {row.step for row in rows} == {0, 2, 4}
    assert {row.module for row in rows} == {"backbone", "heads"}
    assert all(0 < row.share <= 1 and row.elastic > 0 for row in rows)
    assert all(row.taught > 0 and row.imitated > 0 for row in rows)
    assert "ratio: smaller / intact, weighted 0.2 and 0.8" in capsys.readouterr().out
