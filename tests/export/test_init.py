"""poa-ds init, from a published teacher to a folder that timm opens."""

import json
from pathlib import Path

import pytest
import torch

from poa_ds.checkpoint.deployed import publish
from poa_ds.cli import main
from poa_ds.export.folder import reload
from poa_ds.methods.method import method
from poa_ds.recipe.tree import Recipe
from tests.distributed.programs.worker import recipe_with
from tests.methods.test_sweet import tree


def run_of(folder: Path, recipe: Recipe) -> Path:
    """A folder with a teacher as it starts."""
    publish(folder, dict(method(recipe).networks().teacher.state_dict()), recipe, 7)
    return folder


def test_a_size_that_never_trained_is_written_as_a_plain_network(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, out = run_of(tmp_path / "run", recipe_with(**tree([6, 24, 24]))), tmp_path / "96x6"
    assert main(["init", str(run), "--size", "96x6", "--out", str(out), "--check"]) == 0
    said = capsys.readouterr().out
    assert "96x6" in said and "not trained itself" in said and "largest difference" in said
    about = json.loads((out / "config.json").read_text())
    assert about["model_args"]["embed_dim"] == 96 and about["model_args"]["depth"] == 6
    assert "not trained itself" in about["poa_ds"]["made"] and about["poa_ds"]["step"] == 7
    assert reload(out)(torch.randn(2, 3, 32, 32)).shape == (2, 96)


def test_extract_points_to_init_and_init_to_extract(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    templated = run_of(tmp_path / "templated", recipe_with(**tree([6, 24, 24])))
    plain, out = run_of(tmp_path / "plain", recipe_with()), str(tmp_path / "out")
    for command, run, said in (
        ("extract", templated, "`poa-ds init` makes a start of any width and depth"),
        ("extract", plain, "`poa-ds template`, then `poa-ds init` make a start of any"),
        ("init", plain, "a vit has the trained sizes alone"),
    ):
        assert main([command, str(run), "--size", "96x6", "--out", out]) != 0
        error = capsys.readouterr().err
        assert said in error and ("poa-ds template" in error) == (run == plain)
    assert main(["init", str(templated), "--size", "tall", "--out", out]) != 0
    assert "neither a name of the run" in capsys.readouterr().err
