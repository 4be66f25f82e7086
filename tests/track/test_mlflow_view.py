"""What MLflow shows of a run: metrics and names of the run and of its sizes, and the note."""

from pathlib import Path

from poa_ds.model.space import Subnet
from poa_ds.recipe import derived, load
from poa_ds.track.metrics_file import Floors, knn_values
from poa_ds.track.mlflow_view import View
from tests.support.made_runs import PHOTOS, protocol

SMALL, BASE, OTHER = Subnet(32, 2), Subnet(64, 3), Subnet(48, 4)
RECIPE = load.recipe(PHOTOS, [])
TOP1 = {SMALL: {20: 55.0, 10: 54.0}, BASE: {20: 65.0, 10: 64.5}, OTHER: {20: 70.0, 10: 69.0}}
FLOORS = Floors(27.0, {SMALL: 50.0, BASE: 52.0, OTHER: 68.5})


def test_the_run_has_the_best_and_the_named_sizes_and_each_size_its_own() -> None:
    values = {"loss/total": 1.0} | knn_values(TOP1, FLOORS, report_k=20)
    assert View(RECIPE).by_run(values) == {
        "": {
            "loss/total": 1.0,
            "knn/best": 70.0,
            "knn/small": 55.0,
            "knn/base": 65.0,
            "knn/gain_min": 1.5,
            "knn/gain_max": 13.0,
            "knn/raw_pixels": 27.0,
        },
        "w0032_d02": {"knn_top1": 55.0, "knn_k20": 55.0, "knn_k10": 54.0, "knn_random": 50.0},
        "w0064_d03": {"knn_top1": 65.0, "knn_k20": 65.0, "knn_k10": 64.5, "knn_random": 52.0},
        "w0048_d04": {"knn_top1": 70.0, "knn_k20": 70.0, "knn_k10": 69.0, "knn_random": 68.5},
    }
    assert View(RECIPE).by_run({"loss/total": 2.0}) == {"": {"loss/total": 2.0}}


def test_a_size_called_best_does_not_hide_the_best() -> None:
    recipe = load.recipe(PHOTOS, ["backbone.names={best: 32x2}"])
    values = knn_values(TOP1, FLOORS, report_k=20)
    assert View(recipe).by_run(values)[""]["knn/best"] == 70.0


def test_sizes_are_called_by_width_depth_and_name() -> None:
    view = View(RECIPE)
    assert [view.name(size) for size in (SMALL, OTHER)] == ["32x2 (small)", "48x4"]
    assert view.size_tags(BASE) == {
        "poa.size": "64x3",
        "poa.width": "64",
        "poa.depth": "3",
        "poa.named": "base",
    }
    assert view.run_tags() == {"poa.method": "poa", "poa.backbone": "vit", "poa.sizes": "15"}
    shape = derived.shape(RECIPE)
    flops = shape.flops(BASE, RECIPE.evaluation.crop) / 1e9
    assert view.costs(BASE) == {"parameters": shape.parameters(BASE), "gflops": flops}


def test_the_note_has_the_best_and_the_named_sizes_with_their_errors(tmp_path: Path) -> None:
    top1 = {size: by_k[20] for size, by_k in TOP1.items()}
    note = View(RECIPE).note(500, top1, FLOORS, protocol(), tmp_path)
    rows = [line for line in note.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3  # head, the best, two of three names
    error = 1.96 * (70 * 30 / 760) ** 0.5
    assert rows[2].startswith("| 48x4, the best | ")
    assert rows[2].endswith(f" | 70.0 ± {error:.1f} | +1.5 |")
    assert rows[3].startswith("| 32x2 (small) | ") and "| +5.0 |" in rows[3]
    assert "Raw pixels alone: 27.0." in note and "temperature 0.07" in note
    assert f"{tmp_path}/report.html" in note
