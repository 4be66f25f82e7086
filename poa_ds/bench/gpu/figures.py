"""The figures that a report shows, out of what the measured programs leave in files."""

import math
import statistics
from pathlib import Path
from typing import Any

from poa_ds.bench.gpu.calls import Figures
from poa_ds.plan.floor import Floor
from poa_ds.run import exit_status
from poa_ds.system import json_text
from poa_ds.system.errors import UserError
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import metrics_file
from poa_ds.track.metrics_file import PIXELS, Row

GIB = 2**30
COPY, PRODUCT = "copy, TB/s", "bf16 product, TFLOP/s"  # of the machine's record
KNN = "knn_top1/"
RESUMED = "resume"  # the kind of a run's event


def read(path: Path) -> dict[str, Any]:
    """A record, which is an object. UserError: it is absent or damaged."""
    try:
        return json_text.parse_object(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} was not written: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def of_step(path: Path) -> Figures:
    """Of the record of `poa-ds bench step`: each way's time, memory and profile."""
    record = read(path)
    batch = record["config"]["batch"]
    found: Figures = {"order": "in turns" if record["in_turns"] else "one after the other"}
    for kind, result in record["results"].items():
        middle = statistics.median(1000 * step["seconds"] for step in result["steps"])
        found[f"{kind}: ms"] = middle
        images = 1000 * batch["slots"] * batch["images_per_slot"] / middle
        found[f"{kind}: images/s"] = images
        found[f"{kind}: peak GiB"] = result["memory"]["peak"] / GIB
        found |= {f"{kind}: {name}": value for name, value in _profile(result["profile"]).items()}
    for kind, ratio in record["speed_ratios"].items():
        found[f"time of {kind} / ours"] = ratio
    return found


def held_to_floor(step: Path, machine: Path) -> tuple[float, float] | None:
    """(milliseconds of the counted floor, its share of the time of ours), medians over the steps.

    At the rates of the machine's record; None where it has none, or a record is not there.
    """
    if not step.exists() or not machine.exists():
        return None
    rates, record = read(machine), read(step)
    if PRODUCT not in rates:
        return None
    floors = [
        Floor(**counted).seconds(1e12 * rates[PRODUCT], 1e12 * rates[COPY])
        for counted in record["floors"]
    ]
    steps = record["results"]["ours"]["steps"]
    shares = [least / taken["seconds"] for least, taken in zip(floors, steps, strict=True)]
    return 1000 * statistics.median(floors), statistics.median(shares)


def _profile(profile: dict[str, Any] | None) -> Figures:
    if profile is None:
        return {}
    found: Figures = {}
    if used := profile["device"]:
        found |= {
            "launches per step": used["launches"],
            "waits of the host per step": used["waits"],
            "copies to the GPU per step": used["copies_to_device"],
        }
        found |= {"GPU busy, ms per step": used["busy"], "GPU idle, ms per step": used["idle"]}
    for place, operator in enumerate(profile["operators"], start=1):
        text = (
            f"{operator['name']}: {operator['milliseconds']:.3g} ms, {operator['calls']:.0f} calls"
        )
        found[f"operator {place}"] = text
    return found


def of_heads(path: Path) -> Figures:
    """Of the record of `poa-ds bench heads`."""
    found: Figures = {}
    for way, figures in read(path).items():
        if way != "machine":
            found[f"{way}: ms"] = 1000 * min(figures["seconds"])
            found[f"{way}: peak GiB"] = figures["peak"] / GIB
    return found


def of_loader(path: Path) -> Figures:
    """Of the record of `poa-ds bench data`."""
    record = read(path)
    found: Figures = {f"{n} workers: images/s": rate for n, rate in record["rates"].items()}
    found |= {f"{part}: processor ms per image": ms for part, ms in record["parts"].items()}
    return found | {"published pipeline: processor ms per image": record["published"]}


def of_kernels(path: Path) -> Figures:
    """Of the record of `python -m poa_kernels.bench`: milliseconds; in the smoke run the errors."""
    found: Figures = {}
    for figure in read(path)["figures"]:
        name, ms = f"{figure['comparison']}, {figure['contender']}", figure["milliseconds"]
        wrong = " (wrong)" if figure["wrong"] else ""
        found[f"{name}: {'error' if ms is None else 'ms'}{wrong}"] = ms or figure["error"] or 0.0
    return found


def of_training(folder: Path) -> Figures:
    """Of a run that has come to its end. UserError: it has not, or its loss is not finite."""
    ended, rows = exit_status.read(folder), _rows(folder)
    if ended is None or ended.status != exit_status.DONE:
        raise UserError(f"{folder}: the run has not come to its end")
    steps = [row for row in rows if "loss/total" in row]
    losses = [row["loss/total"] for row in steps]
    if not losses or not all(map(math.isfinite, losses)):
        raise UserError(f"{folder}: losses that are not finite")
    found: Figures = {"steps": ended.step, "first loss": losses[0], "last loss": losses[-1]}
    found["images/s"] = statistics.median(row["speed/images_per_second"] for row in steps)
    found["skipped steps"] = steps[-1]["skipped_total"]
    for row in rows:
        for name, value in row.items():
            if name.startswith(KNN) or name == PIXELS:
                found[f"{name.replace('/', ' ')}, %"] = value
    return found


def of_overflow(folder: Path) -> Figures:
    """The same of an fp16 run whose loss scale began too high: it skips some steps, not all."""
    found = of_training(folder)
    if not 0 < float(found["skipped steps"]) < float(found["steps"]):
        raise UserError(
            f"{folder}: {found['skipped steps']:.0f} of {found['steps']} steps were skipped: "
            "the first ones should be, while the loss scale comes down"
        )
    return found


def of_stop(folder: Path) -> Figures:
    """Of a run that was asked to stop. UserError: it has not said that it did."""
    ended = exit_status.read(folder)
    if ended is None or ended.status != exit_status.STOPPED:
        raise UserError(f"{folder}: the run was asked to stop and left no word of it")
    return {"stopped and saved after step": ended.step}


def of_continuing(folder: Path) -> Figures:
    """Of a run that was stopped and came to its end. UserError: it began anew instead."""
    found = of_training(folder)
    events = metrics_file.lines_with_steps(RunFolder(folder).events, json_text.parse)
    resumed = [event["step"] for event in events if event["kind"] == RESUMED]
    if not resumed or not resumed[0]:
        raise UserError(f"{folder}: the run began anew, where it should have continued")
    return {"continued after step": resumed[0]} | found


def of_curve(folder: Path) -> Figures:
    """Of a run that has come to its end or was stopped: its speed, and every evaluation so far."""
    ended, rows = exit_status.read(folder), _rows(folder)
    if ended is None:
        raise UserError(f"{folder}: the run has neither ended nor stopped")
    steps = [row for row in rows if "loss/total" in row]
    if not steps or not all(math.isfinite(row["loss/total"]) for row in steps):
        raise UserError(f"{folder}: losses that are not finite")
    found: Figures = {"steps": ended.step, "skipped steps": steps[-1]["skipped_total"]}
    found["images/s"] = statistics.median(row["speed/images_per_second"] for row in steps)
    waits = (row["speed/data_wait_ms"] / row["speed/step_ms"] for row in steps)
    found["waits for the loader, % of a step"] = 100 * statistics.median(waits)
    for row in rows:
        for name, value in row.items():
            if name.startswith(KNN) or name == PIXELS:
                found[f"step {row['step']:.0f}: {name.replace('/', ' ')}, %"] = value
    return found


def has_logged(folder: Path, step: int) -> bool:
    """Whether the metrics of a run have reached the step."""
    path = RunFolder(folder).metrics
    return path.exists() and any(row["step"] >= step for row in _rows(folder))


def _rows(folder: Path) -> list[Row]:
    return metrics_file.read_rows(RunFolder(folder).metrics)
