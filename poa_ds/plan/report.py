"""What `poa-ds plan` prints: tables for people, or one record for JSON."""

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from poa_ds.plan import byol, distillation
from poa_ds.plan.constants import GENERAL, GIB
from poa_ds.plan.plan import Memory, Plan, Times
from poa_ds.plan.state import checkpoint_bytes
from poa_ds.plan.step_time import DRAWN_STEPS, published_share
from poa_ds.system.printable import short

WIDE = 98
NOTICE = (
    "Counted: follows from the recipe's shapes and what DeepSpeed keeps, and agrees with real runs"
    " on CPUs. Estimated: rests on the constants below."
)


def text(plan: Plan) -> str:
    """The whole plan in words and tables."""
    parts = (_head, _memory, _activations, _time, _draws, _run, _constants)
    return "\n\n".join(part(plan) for part in parts)


def notice(plan: Plan) -> str:
    """What kinds of numbers there are."""
    names = ", ".join(plan.cluster.measured)
    was = f"not measured but for {names} of this GPU" if names else "not measured on this GPU"
    return f"An estimate, {was}. {NOTICE}"


def _head(plan: Plan) -> str:
    c, batch, network = plan.cluster, plan.recipe.batch, plan.network
    modules = ", ".join(f"{m} {short(network.of(m))}" for m in dict.fromkeys(network.modules))
    nodes = f"{c.nodes} {'node' if c.nodes == 1 else 'nodes'} x {c.per_node} {c.kind}"
    frozen = [f"teacher  {distillation.described(plan.recipe)}"] if network.frozen else []
    network_speed = f", network {c.network_gbps:,.0f} Gbit/s per node" if c.nodes > 1 else ""
    return "\n".join(
        [
            f"{plan.source} on {nodes} = {c.world} GPUs",
            *textwrap.wrap(notice(plan), WIDE),
            "",
            f"network  {short(network.parameters)} parameters ({modules}), {plan.recipe.precision}",
            *frozen,
            f"batch    {plan.derived.images_per_step:,} images per step: {batch.slots} slots x"
            f" {batch.images_per_slot} images, {batch.slots // c.world} per GPU",
            f"links    NVLink {c.gpu.nvlink.value:.0f} GB/s per GPU{network_speed}",
        ]
    )


def _wrapped(words: str, indent: int) -> list[str]:
    return textwrap.wrap(words, WIDE, subsequent_indent=" " * indent, break_on_hyphens=False)


def _table(rows: Iterable[Sequence[str]], first: int = 48, second: int = 10) -> str:
    """Lines of a name, what kind of number it is, and the numbers."""
    lines = []
    for name, kind, *cells in rows:
        line = f"{name:<{first}}{kind:<{second}}" + "".join(f"{cell:>10}" for cell in cells)
        lines.append(line.rstrip())
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _memory(plan: Plan) -> str:
    found, gpu = plan.memory, plan.cluster.gpu

    def row(name: str, kind: str, values: Iterable[float]) -> list[str]:
        return [name, kind, *map(_gib, values)]

    rows = [
        ["memory of one GPU, GiB", "", *[f"ZeRO {m.stage}" for m in found]],
        row("weights", "counted", [m.state.weights for m in found]),
        row("gradients", "counted", [m.state.gradients for m in found]),
        row(
            "optimizer: fp32 weights, moments, teacher",
            "counted",
            [m.state.optimizer for m in found],
        ),
        row("teacher of the forward pass", "counted", [m.state.teacher for m in found]),
        row(
            "communication: buckets, gathered weights", "counted", [m.state.buffers for m in found]
        ),
        row("heads and losses", "counted", [m.losses for m in found]),
        row("activations, all kept", "counted", [m.activations for m in found]),
        row("  or with activation checkpointing", "counted", [m.recomputed for m in found]),
        row(
            "framework, lost to fragments", "estimated", [m.framework + m.fragments for m in found]
        ),
        row("in all, activations kept", "", [m.total(m.activations) for m in found]),
        ["  fits", f"{gpu.memory.value:g} GiB?", *[_fits(plan, m, m.activations) for m in found]],
        row("in all, activation checkpointing", "", [m.total(m.recomputed) for m in found]),
        ["  fits", f"{gpu.memory.value:g} GiB?", *[_fits(plan, m, m.recomputed) for m in found]],
    ]
    return "\n".join([_table(rows), *_remarks(plan)])


def _fits(plan: Plan, memory: Memory, activations: float) -> str:
    if memory.refused:
        return "refused"
    over = memory.total(activations) - plan.cluster.gpu.memory.value * GIB
    return "yes" if over <= 0 else f"{_gib(over)} over"


def _remarks(plan: Plan) -> list[str]:
    lines = [f"ZeRO {m.stage} is refused: {m.refused}" for m in plan.memory if m.refused]
    lines.append(_advice(plan))
    return [line for words in lines for line in _wrapped(words, 2)]


def _advice(plan: Plan) -> str:
    """Which stage to take: the fastest that fits, without recomputing where that is possible."""
    always = plan.recipe.backbone.activation_checkpointing
    by_stage = {m.stage: m for m in plan.memory}
    fastest = sorted(plan.times, key=lambda t: (t.step.total, t.stage))
    for recomputing in (False, True)[always:]:
        for times in fastest:
            m = by_stage[times.stage]
            if plan.fits(m, m.recomputed if recomputing else m.activations):
                how = (
                    "with activation checkpointing" if recomputing else "with all activations kept"
                )
                more = " backbone.activation_checkpointing=true" if recomputing else ""
                file = f"--deepspeed_config ds_configs/zero{m.stage}.json{more}"
                return f"The fastest that fits is ZeRO {m.stage} {how}: {file}"
    return "Nothing fits: it needs larger GPUs or a smaller batch.images_per_slot."


def _activations(plan: Plan) -> str:
    sizes = " and ".join(map(str, plan.largest.subnets))
    head = f"what one slot keeps of sizes {sizes}, GiB"
    every = [*plan.parts.activations.items(), *plan.parts.losses.items()]
    rows = [[name, "counted", _gib(size)] for name, size in every if size >= GIB / 200]
    rows.append(["the rest", "counted", _gib(sum(s for _, s in every if s < GIB / 200))])
    return _table([[head, "", ""], *rows], first=58)


def _time(plan: Plan) -> str:
    def row(name: str, values: Iterable[float], form: str = ".1f") -> list[str]:
        return [name, "estimated", *[f"{value:{form}}" for value in values]]

    steps = [t.step for t in plan.times]
    images = plan.derived.images_per_step
    drawn = plan.draws[plan.recipe.draws]
    elastic = f"elastic student ({drawn.mean:.2f} of the intact)"
    scores = "scores: Sinkhorn and cross-entropy"
    if distillation.is_frozen(plan.recipe):
        scores = "similarities to the queue"
    parts = (
        ("teacher", "teacher"),
        ("intact student", "intact"),
        (elastic, "elastic"),
        ("waiting for the largest size", "waiting"),
        ("heads", "heads"),
        *([] if byol.compares(plan.recipe) else [(scores, "scores")]),
        ("optimizer and moving average", "optimizer"),
        ("communication, none of it hidden", "communication"),
    )
    rows = [["a step, ms", "", *[f"ZeRO {t.stage}" for t in plan.times]]]
    rows += [row(name, [1000 * getattr(s, field) for s in steps]) for name, field in parts]
    sent = [f"{s.sent_gib:.2f}" for s in steps]
    rows += [
        ["  GiB that each GPU sends", "counted", *sent],
        row("in all", [1000 * s.total for s in steps]),
        row("images/s", [images / s.total for s in steps], ",.0f"),
        row(
            "in all, if no faster than the published run", [1000 * t.published for t in plan.times]
        ),
    ]
    share, efficiency = published_share(), plan.cluster.efficiency(plan.recipe.precision)
    note = (
        f"The published run (32 A100, 86 hours) reached {100 * share:.0f} % of the peak, everything"
        f" included; the estimate above supposes {100 * efficiency:.0f} % for the networks. Expect"
        " a time between the two."
    )
    return "\n".join([_table(rows), *textwrap.wrap(note, WIDE)])


def _draws(plan: Plan) -> str:
    elastic = {t.stage: t.step.elastic for t in plan.times}
    mean = plan.draws[plan.recipe.draws].mean
    unit = next(iter(elastic.values()), 0.0) / mean
    rows = [["elastic sizes by `draws`: cost, 1 = intact", "", "mean", "slowest", "ms lost"]]
    for policy, drawn in plan.draws.items():
        chosen = " (the recipe's)" if policy == plan.recipe.draws else ""
        lost = 1000 * unit * (drawn.slowest - drawn.mean)
        cells = (f"{drawn.mean:.3f}", f"{drawn.slowest:.3f}", f"{lost:.1f}")
        rows.append([policy + chosen, "counted", *cells])
    note = (
        f"Of {DRAWN_STEPS} steps (fewer above 64 slots), drawn as the training draws them. Slowest:"
        " of all ranks in each turn, on average; the others wait for it. Milliseconds are"
        " estimated. With ZeRO 3 ranks meet at every block, and wait somewhat longer."
    )
    return "\n".join([_table(rows, first=58), *textwrap.wrap(note, WIDE)])


def _run(plan: Plan) -> str:
    numbers, loader, data = plan.derived, plan.loader, plan.recipe.data
    share = f"{100 * numbers.evaluation_share:.1f} %"
    wanted = -(-loader.workers // plan.cluster.per_node)
    enough = "enough" if loader.has >= loader.workers else f"too few: data.workers={wanted}"
    rows = [
        ("images", f"{numbers.images:,} ({plan.images_from})"),
        ("run", f"{numbers.steps:,} steps, and evaluations: about {share} more work"),
        *[(f"ZeRO {t.stage}", _days(plan, t)) for t in plan.times],
        (
            "checkpoint",
            f"{checkpoint_bytes(plan.network) / GIB:.2f} GiB each (counted);"
            f" checkpoint.keep_last {plan.recipe.checkpoint.keep_last}",
        ),
        (
            "loader",
            f"{loader.images_per_second:,.0f} images/s for each node (estimated): {loader.workers}"
            f" workers, each a core with {plan.images_per_core:g} images/s; data.workers"
            f" {data.workers} starts {loader.has}: {enough}",
        ),
    ]
    return "\n".join(line for name, words in rows for line in _wrapped(f"{name:<12}{words}", 12))


def _days(plan: Plan, times: Times) -> str:
    more = 1 + plan.derived.evaluation_share
    seconds = [plan.derived.steps * each * more for each in (times.step.total, times.published)]
    hours = [each / 3600 * plan.cluster.world for each in seconds]
    return (
        f"{seconds[0] / 86400:.1f} days, {hours[0]:,.0f} GPU-hours (estimated); like the published"
        f" run {seconds[1] / 86400:.1f} days, {hours[1]:,.0f}"
    )


def _constants(plan: Plan) -> str:
    lines = [f"constants of {plan.cluster.kind}, and of all"]
    for name, constant in _named_constants(plan):
        value = f"{name:<20}{constant['value']:>11,.7g} {constant['unit']}"
        lines += _wrapped(f"{value}: {constant['source']}", 32)
    return "\n".join(lines)


def _named_constants(plan: Plan) -> list[tuple[str, dict[str, Any]]]:
    gpu = dataclasses.asdict(plan.cluster.gpu)
    del gpu["name"]
    general = {name: dataclasses.asdict(constant) for name, constant in GENERAL.items()}
    return [*gpu.items(), *general.items()]


def record(plan: Plan) -> dict[str, Any]:
    """The same numbers for programs: bytes and seconds."""
    memory = [
        dataclasses.asdict(m)
        | {
            "framework": m.framework,
            "fragments": m.fragments,
            "total_kept": m.total(m.activations),
            "total_recomputed": m.total(m.recomputed),
            "fits_kept": not m.refused and plan.fits(m, m.activations),
            "fits_recomputed": not m.refused and plan.fits(m, m.recomputed),
        }
        for m in plan.memory
    ]
    times = [
        {"stage": t.stage, **dataclasses.asdict(t.step), "total": t.step.total}
        | {"images_per_second": plan.derived.images_per_step / t.step.total}
        | {"like_published": t.published}
        for t in plan.times
    ]
    return {
        "notice": notice(plan),
        "recipe": plan.source,
        "cluster": dataclasses.asdict(plan.cluster) | {"world": plan.cluster.world},
        "parameters": plan.network.parameters,
        "largest_elastic_size": str(plan.largest.subnets[-1]),
        "memory": memory,
        "saved": dataclasses.asdict(plan.parts),
        "step": times,
        "draws": {policy: dataclasses.asdict(drawn) for policy, drawn in plan.draws.items()},
        "run": dataclasses.asdict(plan.derived) | {"images_from": plan.images_from},
        "checkpoint_bytes": checkpoint_bytes(plan.network),
        "loader": dataclasses.asdict(plan.loader),
        "constants": dict(_named_constants(plan)),
    }
