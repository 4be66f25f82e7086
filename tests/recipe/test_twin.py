"""The recipe of one size alone: only what makes it one size differs from the run's."""

from pathlib import Path

import pytest

from poa_ds.cli import main
from poa_ds.model import build
from poa_ds.recipe import derived, load
from poa_ds.recipe.continuing import changes
from poa_ds.recipe.tree import Recipe

ALONE = {"backbone.names", "evaluation.sizes", "mlflow.run_name", "objective.method", "output_dir"}


def kept(tmp_path: Path, name: str, *words: str) -> tuple[Path, Recipe]:
    recipe = load.recipe(Path(name), [f"output_dir={tmp_path}/run", *words])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(load.to_yaml(recipe))
    return tmp_path / "run", recipe


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("photos", "64x3"), ("photos", "base"), ("photos", "96x4")),
        *(("photos_swin", "24x3"), ("photos_resnet", "16x1-2-2-1")),
    ],
)
def test_a_twin_has_that_size_alone_and_all_else_is_the_runs(
    tmp_path: Path, name: str, size: str
) -> None:
    run, before = kept(tmp_path, name)
    out, subnet = tmp_path / "twin.yaml", derived.space(before).parse(size)
    assert main(["twin", str(run), "--size", size, "--out", str(out)]) == 0
    found = load.recipe(out)
    assert derived.space(found).subnets() == [subnet]
    differing = {change.key for change in changes(load.to_yaml(before), found)}
    assert {key for key in differing if not key.startswith("backbone.")} <= ALONE
    sized = {"backbone.width.min", "backbone.width.max", "backbone.stages"}
    sized |= {"backbone.depth.min", "backbone.depth.max"}
    named = {key for key in differing if key.startswith("backbone.names")}
    assert {k for k in differing if k.startswith("backbone.")} <= sized | named
    assert derived.schedules(found, 10**5) == derived.schedules(before, 10**5)
    side = found.crops.global_size
    network = build.backbone(found.backbone, side, derived.space(found), channels=3)
    whole = build.backbone(before.backbone, side, derived.space(before), channels=3)
    if before.backbone.name == "vit":
        assert network.parameter_count(subnet) == whole.parameter_count(subnet)


def test_the_twin_of_a_gated_size_has_the_units_of_the_slice(tmp_path: Path) -> None:
    run, before = kept(tmp_path, "photos", "backbone.swiglu=256")
    for size in ("32x2", "64x3", "96x4"):
        out, subnet = tmp_path / f"{size}.yaml", derived.space(before).parse(size)
        assert main(["twin", str(run), "--size", size, "--out", str(out)]) == 0
        own, whole = derived.shape(load.recipe(out)), derived.shape(before)
        assert own.parameters(subnet) == whole.parameters(subnet)


def test_without_a_file_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, _ = kept(tmp_path, "photos")
    assert main(["twin", str(run), "--size", "32x2"]) == 0
    said = capsys.readouterr().out
    (tmp_path / "twin.yaml").write_text(said)
    found = load.recipe(tmp_path / "twin.yaml")
    assert found.objective.method == "single" and found.backbone.names == {"small": "32x2"}


def test_what_has_no_twin_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, _ = kept(tmp_path, "photos_seed")
    assert main(["twin", str(run), "--size", "64x3"]) == 2
    assert "learned from" in capsys.readouterr().err
    assert main(["twin", str(tmp_path), "--size", "64x3"]) == 1
    assert "config.yaml" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    run, _ = kept(tmp_path / "other", "photos_resnet")
    assert main(["twin", str(run), "--size", "24x1-2-2-1"]) == 2
    assert "24x1-2-2-1 alone cannot be trained like that: backbone" in capsys.readouterr().err
    (tmp_path / "third").mkdir()
    run, _ = kept(tmp_path / "third", "photos")
    assert main(["twin", str(run), "--size", "80x9"]) == 2
    assert "is not in the space" in capsys.readouterr().err
    assert main(["twin", str(run), "--size", "32x2", "--out", str(tmp_path / "no/where.yaml")]) == 2
