"""Folders of runs with made-up numbers: what a training leaves there, without the training."""

import json
import math
import os
from pathlib import Path

import numpy as np

from poa_ds.evaluate import results
from poa_ds.evaluate.latency.rows import LatencyRow, Place, processor
from poa_ds.evaluate.right import RightRow
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived, load
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.metrics_file import Floors, Row, knn_values

PHOTOS = Path(__file__).parents[2] / "ds_configs" / "photos.yaml"
QUERIES = 760
K = (10, 20)


def percent(size: int, of: int, share: float) -> float:
    """The accuracy of the size-th size after that share of the training: no two are the same."""
    return round(30 + 20 * size / of + 40 * (1 - math.exp(-4 * share)) + 0.013 * (size % 7), 2)


def protocol(queries: int = QUERIES) -> dict[str, object]:
    return {
        "bank": {"images": 2850, "of": 2850, "index_sha256": "a"},
        "queries": {"images": queries, "of": queries, "index_sha256": "b"},
        "feature": "class token, unit length",
        "k": list(K),
        "temperature": 0.07,
        "resize": 32,
        "crop": 32,
        "precision": "fp32",
    }


def made_run(
    folder: Path,
    *overrides: str,
    config: Path = PHOTOS,
    evaluations: int = 5,
    steps: int = 400,
    ks: tuple[int, ...] = K,
    queries: int = QUERIES,
) -> Path:
    """The folder of a run that is still going after `steps` logged steps."""
    folder.mkdir(parents=True)
    files = RunFolder(folder)
    recipe = load.recipe(config, [f"output_dir={folder}", *overrides])
    files.recipe.write_text(load.to_yaml(recipe))
    files.derived.write_text(json.dumps({"steps": 2 * steps, "warmup_steps": steps // 10}))
    sizes = derived.space(recipe).subnets()
    rows = {step: _logged(step, steps) for step in range(1, steps + 1)}
    for number in range(evaluations):
        share = number / max(1, evaluations - 1)
        step = round(steps * share)
        row = _evaluated(step, share, sizes, ks, queries)
        results.append(files.knn, row)
        top1 = {size: row.knn[str(size)] for size in sizes}
        shown = rows.setdefault(step, {"step": step, "time": 1.7e9 + step})
        shown |= knn_values(top1, Floors(19.0), report_k=20)
    lines = (json.dumps(rows[step]) + "\n" for step in sorted(rows))
    files.metrics.write_text("".join(lines))
    return folder


def keep_answers(folder: Path, *, k: int = 20) -> None:
    """Which queries each size got right at the last evaluation: what a better one does not, none.

    But every seventh size has its own.
    """
    row = results.read(RunFolder(folder).knn)[-1]
    count = row.protocol["queries"]["images"]
    bits = {s: np.arange(count) < round(count * by_k[k] / 100) for s, by_k in row.knn.items()}
    for size in [*bits][::7]:
        bits[size] = bits[size][::-1]
    results.append(RunFolder(folder).right, RightRow.of(row.step, row.protocol, k, bits))


def keep_scores(folder: Path, *, step: int = 400) -> dict[str, float]:
    """linear_top1 of every size, above its k-NN; size -> percent."""
    recipe = load.kept_recipe(RunFolder(folder).recipe)
    sizes = derived.space(recipe).subnets()
    found = {str(size): percent(i, len(sizes), 1.0) + 3 for i, size in enumerate(sizes)}
    shown = {"val": {"images": 500, "of": 500}, "crop": 32, "resize": 32, "precision": "fp32"}
    for size, value in found.items():
        row = ScoreRow(
            *("linear", step, size, "top1", value, results.error(value, 500), "val", "held_out"),
            *({"rate": 0.1}, 1.0, shown, "2"),
        )
        results.append(RunFolder(folder).evaluations, row)
    return found


def keep_times(folder: Path) -> None:
    """Times of this machine: what is deep is slow."""
    place = Place("cpu", processor("cpu"), os.cpu_count(), 1, "torch 2", 1, "fp32", 32)
    recipe = load.kept_recipe(RunFolder(folder).recipe)
    for number, size in enumerate(derived.space(recipe).subnets()):
        median = 0.1 + sum(size.stages) + size.width / 1000
        spread = 0.5 * (number == 3)
        times = (median, median * (1 - spread), median * (1 + spread))
        row = LatencyRow(3, str(size), place, *times, runs=30, load=0.1)
        results.append(RunFolder(folder).latency, row)


def _evaluated(
    step: int, share: float, sizes: tuple[Subnet, ...], ks: tuple[int, ...], queries: int
) -> results.KnnRow:
    def reached(share: float) -> dict[Subnet, dict[int, float]]:
        return {
            size: {k: round(percent(i, len(sizes), share) - k / 100, 2) for k in ks}
            for i, size in enumerate(sizes)
        }

    pixels = dict.fromkeys(ks, 19.0)
    return results.KnnRow.of(
        step,
        protocol(queries),
        reached(share),
        raw_pixels=pixels,
        random_weights=reached(0.0) if not step else None,
    )


def _logged(step: int, steps: int) -> Row:
    noise = np.random.default_rng(step).normal(0, 1, 12)
    names = ("intact_dino", "intact_ibot", "elastic_dino", "elastic_ibot", "imitation", "koleo")
    losses = {
        f"loss/{n}": 4 + 3 * math.exp(-4 * step / steps) + x / 50
        for n, x in zip(names, noise, strict=False)
    }
    return {
        "step": step,
        "time": 1.7e9 + step,
        "health/target_entropy": 0.5 + noise[7] / 50,
        "health/prototype_usage": 0.95,
        "health/feature_std": 0.8,
        "health/effective_rank": 15 + noise[8] / 5,
        "health/loss_deviation": noise[9],
        "health/alarm": float(steps // 2 <= step < steps // 2 + 5),
        "loss/total": sum(losses.values()),
        **losses,
        "gradient_norm/backbone": 900.0 if step == 7 else 2 + noise[10] / 10,
        "gradient_norm/heads": 1.5,
        "schedule/lr": 0.003 * min(1, step / (steps / 10)),
        "speed/images_per_second": 100 + noise[11],
        "speed/step_ms": 640.0,
        "speed/data_wait_ms": 16.0,
        "memory/host_gib": 1.1,
        "skipped_total": float(step > steps // 3),
    }
