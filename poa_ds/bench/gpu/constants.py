"""What `poa-ds plan` assumes about this GPU, out of what was measured here."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from poa_ds.bench.gpu import parts
from poa_ds.bench.gpu.calls import Scene
from poa_ds.bench.gpu.figures import COPY, read
from poa_ds.plan import measured, state
from poa_ds.plan.constants import GENERAL, GPUS, Constant
from poa_ds.plan.step_time import work
from poa_ds.recipe import derived, load

Found = tuple[str, measured.Constants] | tuple[None, str]


def of_scene(scene: Scene) -> Found:
    """(kind of GPU, its constants), or (None, why there are none)."""
    if scene.smoke or scene.device == "cpu":
        return None, "no full run on a GPU"
    step = parts.step_record(scene, parts.VIT, parts.PUBLISHED)
    outcome = scene.outcomes("step").get(parts.PUBLISHED_CALL)
    if not outcome or not step.exists() or not scene.record("machine").exists():
        return None, "the parts machine and step have to be measured"
    place = f"{outcome.date}, commit {outcome.commit or 'not known'}"
    return of_records(read(step), read(scene.record("machine")), place)


def of_records(record: Mapping[str, Any], rates: Mapping[str, Any], place: str) -> Found:
    """The same of the records of a step and of the machine. place: date and commit."""
    name, kind = rates["processor"], measured.kind_of(rates["processor"])
    if kind is None or COPY not in rates:
        return None, f"the plan knows {', '.join(gpu.name for gpu in GPUS.values())}, not {name}"
    copy, source = rates[COPY], f"measured: `poa-ds bench gpu`, {name}, {place}"
    share = statistics.median(_efficiencies(record, 1e12 * copy, 1e12 * GPUS[kind].peak.value))
    recipe = f"the step of {record['arguments']}"
    return kind, {
        "efficiency": Constant(share, "of the peak", f"{source}; {recipe}, as the plan counts it"),
        "bandwidth": Constant(copy, "TB/s", f"{source}; a copy of 4 GiB"),
        "bandwidth_share": Constant(1.0, "of the bandwidth", "the copy is what is sustained"),
    }


def _efficiencies(record: Mapping[str, Any], copy: float, peak: float) -> Iterable[float]:
    """Of each step: what the plan has to suppose in order to tell just this step's time."""
    recipe = load.from_dict(record["config"])
    space, one, slots = derived.space(recipe), work(recipe), recipe.batch.slots
    updated = state.network(recipe).parameters * GENERAL["optimizer_bytes"].value
    moved = (slots * one.score_bytes + updated) / copy
    taken = record["results"]["ours"]["steps"]
    for sizes, sample in zip(record["sizes"], taken, strict=True):
        costs = [space.cost(space.parse(size)) for _, *drawn in sizes for size in drawn]
        flops = slots * one.flops(statistics.fmean(costs))
        yield flops / (sample["seconds"] - moved) / peak
