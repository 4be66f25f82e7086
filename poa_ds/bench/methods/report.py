"""The table of a comparison: Markdown for people, JSON with every figure of every seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from poa_ds.bench.methods.results import Result
from poa_ds.bench.methods.runner import Outcome
from poa_ds.bench.methods.runs import Run
from poa_ds.bench.methods.table import Table
from poa_ds.bench.statistics import Mean, mean
from poa_ds.evaluate import results as knn_rows

ALL = "mean of them"


def text(
    table: Table,
    runs: Sequence[Run],
    found: Sequence[Result],
    outcomes: Mapping[str, Outcome],
    command: str,
) -> str:
    """The whole report in Markdown; what is missing or failed is said in it."""
    parts = [f"# {table.name}: variants of a recipe, measured", f"    {command}"]
    if not found:
        return "\n\n".join([*parts, "No run is finished yet.", *_missing(runs, outcomes)]) + "\n"
    k = runs[0].recipe.evaluation.report_k
    protocol = next((r.protocol for r in found if r.protocol), None)
    if protocol is None:
        return "\n\n".join([*parts, "No features are finite.", *_missing(runs, outcomes)]) + "\n"
    half = knn_rows.error(75.0, protocol["queries"]["images"])
    parts += [
        f"{_where(outcomes)}",
        f"k-NN top-1 in percent, k = {k}: the mean over seeds with its 95 % error (t) between"
        f" seeds. {knn_rows.describe(protocol)}: by the queries alone one accuracy has an"
        f" error of about {half:.1f} points.",
        _markdown(["", "seeds", *_columns(table)], _accuracies(table, found)),
        f"Minus {table.head.against}, in points, paired by seed. `ahead`, `behind`: the whole"
        " interval lies on that side; `not shown`: it does not.",
        _markdown(["", "seeds", *_columns(table)], _differences(table, found)),
        *_begun(table, found),
        "What one seed costs. TFLOP: counted, evaluations left out; time: of the steps.",
        _markdown(["", "runs", "images", "TFLOP", "time"], _costs(table, found)),
        *_missing(runs, outcomes),
    ]
    return "\n\n".join(parts) + "\n"


def record(table: Table, runs: Sequence[Run], found: Sequence[Result]) -> dict[str, Any]:
    """The same as JSON, with the values that the means are of."""
    return {
        "table": table.name,
        "against": table.head.against,
        "sizes": list(table.head.sizes),
        "missing": [run.name for run in runs if not run.done],
        "protocol": dict(next((r.protocol for r in found if r.protocol), {})),
        "variants": {
            variant: {
                "k-NN": _json(table, lambda size, v=variant: accuracy(found, v, size)),
                "before": _json(table, lambda size, v=variant: accuracy(begun(found), v, size)),
                "difference": _json(
                    table, lambda size, v=variant: difference(found, v, table.head.against, size)
                ),
                "seeds": [
                    {
                        "seed": r.seed,
                        "knn": dict(r.knn),
                        "runs": r.runs,
                        "whole": r.whole,
                        "images": r.images,
                        "flops": r.flops,
                        "seconds": r.seconds,
                    }
                    for r in found
                    if r.variant == variant
                ],
            }
            for variant in dict.fromkeys(run.variant for run in runs)
        },
    }


def accuracy(found: Sequence[Result], variant: str, size: str) -> Mean | None:
    """Over the seeds that have it."""
    values = _by_seed(found, variant, size)
    return mean([*values.values()]) if values else None


def difference(found: Sequence[Result], variant: str, against: str, size: str) -> Mean | None:
    """Over the seeds that both have; positive: the variant is better."""
    own, other = _by_seed(found, variant, size), _by_seed(found, against, size)
    both = [own[seed] - other[seed] for seed in own if seed in other]
    return mean(both) if both else None


def begun(found: Sequence[Result]) -> list[Result]:
    """Those that were measured before their first step, with what that gave."""
    return [replace(result, knn=result.before) for result in found if result.before]


def _begun(table: Table, found: Sequence[Result]) -> list[str]:
    first = begun(found)
    if not first:
        return []
    rows = _accuracies(table, first)
    return ["Before the first step.", _markdown(["", "seeds", *_columns(table)], rows)]


def _by_seed(found: Sequence[Result], variant: str, size: str) -> dict[int, float]:
    """Seed -> accuracy of the size; under ALL the mean, of seeds that have every size."""
    if size != ALL:
        return {r.seed: r.knn[size] for r in found if r.variant == variant and size in r.knn}
    every = {size for r in found for size in r.knn}
    having = [r for r in found if r.variant == variant and r.whole and r.knn.keys() == every]
    return {r.seed: fmean(r.knn.values()) for r in having}


def _columns(table: Table) -> list[str]:
    return [*table.head.sizes, ALL]


def _variants(table: Table, found: Sequence[Result]) -> list[str]:
    return [name for name in table.variants if any(r.variant == name for r in found)]


def _accuracies(table: Table, found: Sequence[Result]) -> list[list[str]]:
    rows = []
    for name in _variants(table, found):
        cells = [accuracy(found, name, size) for size in _columns(table)]
        seeds = [str(r.seed) for r in found if r.variant == name]
        shown = f"**{name}**" if name == table.head.against else name
        rows.append([shown, ", ".join(seeds), *("-" if c is None else c.text() for c in cells)])
    return rows


def _differences(table: Table, found: Sequence[Result]) -> list[list[str]]:
    rows, against = [], table.head.against
    for name in _variants(table, found):
        cells = [difference(found, name, against, size) for size in _columns(table)]
        known = [cell for cell in cells if cell is not None]
        if name != against and known:
            shown = ("-" if c is None else f"{c.text('+')}, {c.verdict}" for c in cells)
            rows.append([name, str(max(len(cell.values) for cell in known)), *shown])
    return rows


def _costs(table: Table, found: Sequence[Result]) -> list[list[str]]:
    rows = []
    for name in _variants(table, found):
        whole = [r for r in found if r.variant == name and r.whole]
        if not whole:
            continue
        others = " and ".join(table.before(name))
        rows.append(
            [
                name + (f", beside the run of {others}" if others else ""),
                str(whole[0].runs),
                f"{fmean(r.images for r in whole):,.0f}",
                f"{fmean(r.flops for r in whole) / 1e12:,.1f}",
                f"{fmean(r.seconds for r in whole) / 60:,.1f} min",
            ]
        )
    return rows


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "(nothing yet)"
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _where(outcomes: Mapping[str, Outcome]) -> str:
    """Machines, dates and commits of the runs."""
    machines = sorted({o.machine or "a machine that was not kept" for o in outcomes.values()})
    loads = [o.load for o in outcomes.values() if o.load is not None]
    load = f" (load {min(loads):.0f} to {max(loads):.0f} when a run ended)" if loads else ""
    dates = sorted({o.date for o in outcomes.values() if not o.why})
    commits = sorted({o.commit[:12] for o in outcomes.values() if not o.why})
    return (
        f"{'; '.join(machines)}{load}; {', '.join(dates)};"
        f" at {', '.join(filter(None, commits)) or 'no commit'}."
    )


def _missing(runs: Sequence[Run], outcomes: Mapping[str, Outcome]) -> list[str]:
    lines = []
    for run in runs:
        if not run.done:
            why = outcomes[run.name].why if run.name in outcomes else ""
            lines.append(f"* {run.name}: {why or 'not done yet'}")
    return ["Missing; the same command goes on:", "\n".join(lines)] if lines else []


def _json(table: Table, of: Callable[[str], Mean | None]) -> dict[str, Any]:
    found = {size: of(size) for size in _columns(table)}
    return {
        size: {"mean": m.mean, "error": m.error, "seeds": len(m.values), "verdict": m.verdict}
        for size, m in found.items()
        if m is not None
    }
