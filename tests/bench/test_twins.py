"""What a step of a run of all sizes costs beside a step of each size alone."""

import json
from pathlib import Path

import pytest
import yaml

from poa_ds.bench.twins import Cost, table
from poa_ds.cli import main
from tests.bench.test_step import TINY


def test_the_steps_that_each_size_alone_could_have() -> None:
    found = {"the run": Cost(0.6, 4e9), "16x2": Cost(1.0, 2e9), "32x2": Cost(2.0, 6e9)}
    text = table(found, "cpu", "photos")
    assert "each size alone has 0.200 steps in equal processor time, and 0.500 for equal" in text
    together = next(line for line in text.splitlines() if line.startswith("2 sizes alone"))
    assert together.split()[-2:] == ["3,000", "8.00"]


def test_a_method_whose_run_does_not_stand_for_all_sizes_is_refused(capsys) -> None:
    assert main(["bench", "twins", "--config", "photos_dspnet"]) == 2
    assert "dspnet: a run of it does not stand for all sizes" in capsys.readouterr().err


@pytest.mark.slow
def test_every_size_is_measured_beside_the_run(tmp_path: Path, capsys) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "costs.json"
    backbone = TINY["backbone"] | {
        "depth": {"min": 2, "max": 2, "step": 1},
        "width": {"min": 16, "max": 32, "step": 16},
    }
    recipe.write_text(yaml.safe_dump(TINY | {"backbone": backbone}))
    words = ["--config", str(recipe), "--rounds", "1", "--json", str(out)]
    assert main(["bench", "twins", *words]) == 0
    found = json.loads(out.read_text())
    assert [*found] == ["the run", "16x2", "32x2"]
    assert all(each["seconds"] > 0 for each in found.values())
    assert found["16x2"]["flops"] < found["32x2"]["flops"] < found["the run"]["flops"]
    assert "2 sizes alone, together" in capsys.readouterr().out
