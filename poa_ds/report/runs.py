"""What a page shows of one run, read from the files in its folder: no weights, no torch.

A run that is still going, was killed, or has not been evaluated has fewer files, and a shorter
page.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from poa_ds.evaluate import results, score_rows
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.report import choosing, scores
from poa_ds.report.series import columns, rounded, thinned
from poa_ds.system import events
from poa_ds.system.addresses import without_passwords
from poa_ds.system.errors import UserError
from poa_ds.system.json_text import parse_object
from poa_ds.system.run_folder import RunFolder
from poa_ds.system.typed_yaml import flat, plain
from poa_ds.track import metrics_file
from poa_ds.track.metrics_file import Row

Shown = dict[str, Any]  # goes into the page as JSON


def read(folder: Path) -> Shown:
    """Everything that the page shows of the run. UserError: it is none, or a file is damaged."""
    files = RunFolder(folder)
    if not files.recipe.is_file():
        raise UserError(f"{folder} is no run: it has no {files.recipe.name}")
    recipe = load.kept_recipe(files.recipe)
    rows = metrics_file.read_rows(files.metrics) if files.metrics.is_file() else []
    numbers = _numbers(files.derived)
    listed, times = sizes(recipe), choosing.latencies(files.latency)
    for size in listed:
        size["latency"] = times.get("ms", {}).get(size["size"])
    evaluations, k = results.read(files.knn), recipe.evaluation.report_k
    names, others = [size["size"] for size in listed], score_rows.read(files.evaluations)
    return {
        "name": recipe.mlflow.run_name or folder.absolute().name,
        "folder": folder.absolute().name,
        "path": str(folder),
        "shell": shlex.quote(str(folder)),
        "sizes": listed,
        "times": {key: times[key] for key in ("place", "unsteady") if times},
        "readouts": readouts(evaluations, names) + scores.readouts(others, names),
        "report_k": k,
        "sure": choosing.sure(
            choosing.answers(files, evaluations, k), listed, _last(evaluations, k)
        ),
        "crop": recipe.evaluation.crop,
        "series": columns(thinned(rows)),
        "warmup": numbers.get("warmup_steps", 0),
        "steps": numbers.get("steps"),
        "step": max(
            [row["step"] for row in [*rows[-1:]]] + [row.step for row in evaluations[-1:]],
            default=0,
        ),
        "ended": ended(files.ended),
        "facts": facts(rows),
        "events": happened(files.events) or guessed(rows),
        "recipe": {
            key: without_passwords(str(value)) for key, value in flat(plain(recipe)).items()
        },
    }


def sizes(recipe: Recipe) -> list[Shown]:
    """Every size with its costs, narrow ones first."""
    space, shape = derived.space(recipe), derived.shape(recipe)
    names: dict[str, list[str]] = {}
    for name, subnet in space.names.items():
        names.setdefault(str(subnet), []).append(name)
    return [
        {
            "size": str(subnet),
            "name": ", ".join(names.get(str(subnet), [])),
            "width": subnet.width,
            "depth": subnet.depth_text,
            "blocks": sum(subnet.stages),
            "parameters": shape.parameters(subnet),
            "gflops": rounded(shape.flops(subnet, recipe.evaluation.crop) / 1e9),
        }
        for subnet in space.subnets()
    ]


def readouts(rows: Sequence[results.KnnRow], names: Sequence[str]) -> list[Shown]:
    """Of each k: values[evaluation][size], the floors, and by which protocols.

    None stands where a size was not measured. Of two rows of one step the later one counts, size
    by size.
    """
    found = []
    for k in sorted({k for row in rows for by_k in row.knn.values() for k in by_k}):
        of_k = [row for row in rows if any(k in by_k for by_k in row.knn.values())]
        by_step: dict[int, dict[str, float]] = {}
        random: dict[str, float] = {}
        pixels = None
        for row in of_k:
            measured = {size: by_k[k] for size, by_k in row.knn.items() if k in by_k}
            by_step.setdefault(row.step, {}).update(measured)
            random |= {size: by_k[k] for size, by_k in row.random_weights.items() if k in by_k}
            pixels = row.raw_pixels.get(k, pixels)
        steps = sorted(by_step)
        found.append(
            {
                "k": k,
                "steps": steps,
                "values": [[rounded(by_step[step].get(name)) for name in names] for step in steps],
                "random": [rounded(random.get(name)) for name in names],
                "pixels": rounded(pixels),
                "queries": of_k[-1].protocol["queries"]["images"],
                "protocols": sorted({results.describe(row.protocol) for row in of_k}),
                "protocol": dict(of_k[-1].protocol),
            }
        )
    return found


def _last(rows: Sequence[results.KnnRow], k: int) -> dict[str, float]:
    """The accuracies of the last evaluation."""
    step = max((row.step for row in rows), default=0)
    return {size: by_k[k] for size, (by_k, _) in results.newest(rows, step).items() if k in by_k}


def facts(rows: Sequence[Row]) -> Shown:
    """Speed, waiting, time and alarms, over every row that was logged."""
    speeds = [row["speed/images_per_second"] for row in rows if "speed/images_per_second" in row]
    timed = [row for row in rows if {"speed/step_ms", "speed/data_wait_ms"} <= row.keys()]
    whole = sum(row["speed/step_ms"] for row in timed)
    alarms = [row["health/alarm"] for row in rows if "health/alarm" in row]
    skipped = [row["skipped_total"] for row in rows if "skipped_total" in row]
    times = [row["time"] for row in rows if "time" in row]
    return {
        "images_per_second": rounded(median(speeds)) if speeds else None,
        "waiting": rounded(sum(r["speed/data_wait_ms"] for r in timed) / whole) if whole else None,
        "seconds": times[-1] - times[0] if times else 0,
        "rows": len(alarms),
        "rows_with_alarm": sum(map(bool, alarms)),
        "alarms_on": alarms[-1] if alarms else 0,
        "skipped": skipped[-1] if skipped else 0,
    }


def happened(path: Path) -> list[Shown]:
    """What the run wrote down of starts, stops, alarms and skipped steps."""
    return [
        {"step": event.step, "kind": event.kind, "text": without_passwords(event.text)}
        for event in events.read(path)
    ]


def guessed(rows: Sequence[Row]) -> list[Shown]:
    """The same of a run that wrote nothing down, as far as its metrics tell."""
    found, on, skipped = [], 0.0, 0.0
    for row in rows:
        now, total = row.get("health/alarm", on), row.get("skipped_total", skipped)
        if now != on:
            kind = "alarm" if now > on else "over"
            found.append({"step": row["step"], "kind": kind, "text": f"{now:g} alarms are on"})
        if total > skipped:
            text = f"{total - skipped:g} skipped: their numbers were not finite"
            found.append({"step": row["step"], "kind": "skipped", "text": text})
        on, skipped = now, total
    return found


def ended(path: Path) -> str:
    """How the run ended, in words; "" while it goes on and after a fault."""
    if not path.is_file():
        return ""
    try:
        record = parse_object(path.read_bytes(), status=int)
    except ValueError:  # a disk that was full: the run left no record
        return ""
    if record["status"] == 0:
        return "finished"
    return f"stopped ({record.get('reason') or 'asked to'}), can go on"


def _numbers(path: Path) -> Shown:
    try:
        return parse_object(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
