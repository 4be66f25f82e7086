"""What a demo says of the run that it made."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from poa_ds.evaluate import results
from poa_ds.evaluate.right import RightRow
from poa_ds.model.space import Subnet
from poa_ds.report import demo_result
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.metrics_file import Floors, knn_values
from tests.support.made_runs import made_run


def demo(folder: Path, **options: int) -> Path:
    """A made-up run that knows the k-NN of random weights, as the demo's does."""
    run = made_run(folder, **options)
    sizes = map(Subnet.read, results.read(RunFolder(run).knn)[-1].knn)
    floors = Floors(19.0, dict.fromkeys(sizes, 25.0))
    with RunFolder(run).metrics.open("a") as file:
        file.write(json.dumps({"step": 400, **knn_values({}, floors, report_k=20)}) + "\n")
    return run


def test_its_sentences_are_those_of_the_last_evaluation(tmp_path: Path) -> None:
    run = demo(tmp_path / "run", queries=3800)
    row = results.read(RunFolder(run).knn)[-1]
    bits = {s: np.arange(3800) < round(38 * by_k[20]) for s, by_k in row.knn.items()}
    results.append(RunFolder(run).right, RightRow.of(row.step, row.protocol, 20, bits))
    said = demo_result.drawn(run, run / "base")
    low, high = row.knn["32x2"][20], row.knn["96x4"][20]
    # the larger one has all the answers of the smaller one, and more
    share = (high - low) / 100
    error = 196 * (share * (1 - share) / 3800) ** 0.5
    assert f"96x4, minus 32x2: {high - low:+.1f} +- {error:.1f} points: larger is better." in said
    assert f"64x3   75.9, 79.7, 79.0; here {row.knn['64x3'][20]:.1f}" in said
    for name in ("curves.png", "heat_map.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 200


def test_what_was_measured_by_other_queries_is_not_set_beside_it(tmp_path: Path) -> None:
    said = demo_result.drawn(demo(tmp_path / "run"), tmp_path / "base")
    assert "alone, seeds" not in said and "minus" not in said
