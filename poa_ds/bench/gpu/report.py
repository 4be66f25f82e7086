"""The report of `poa-ds bench gpu`: all figures, what is missing and why, the stated targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from poa_ds.bench.gpu import constants, parts
from poa_ds.bench.gpu.calls import Figures, Outcome, Part, Scene
from poa_ds.bench.gpu.figures import held_to_floor

Outcomes = Mapping[str, Mapping[str, Outcome]]  # part -> call -> its outcome
FLOOR = 0.7  # of the time


@dataclass(frozen=True)
class Target:
    """A stated one. value: of a call's figures; at_most: it may not be more, else not less."""

    what: str
    call: str
    above: str
    below: str = ""
    limit: float = 1.0
    at_most: bool = False

    def verdict(self, outcomes: Outcomes) -> str:
        """A word and the figure; why it is not judged where there is none."""
        outcome = outcomes.get("step", {}).get(self.call)
        found: Figures = outcome.figures if outcome else {}
        if self.above not in found or (self.below and self.below not in found):
            why = outcome.why if outcome and outcome.why else "it was not measured"
            return f"not judged: {why}"
        value = float(found[self.above]) / (float(found[self.below]) if self.below else 1.0)
        met = value <= self.limit if self.at_most else value >= self.limit
        return f"{'met' if met else 'MISSED'}: {value:.2f}"


TARGETS = (
    Target(
        "whole step at least 1.6 times as fast as the published approach",
        parts.PUBLISHED_CALL,
        "time of three passes / ours",
        limit=1.6,
    ),
    Target(
        "at least 1.05 times as fast as compiled plain blocks",
        parts.COMPILED_CALL,
        "time of compiled / ours",
        limit=1.05,
    ),
    Target(
        "peak memory at most 0.6 of the published approach",
        parts.PUBLISHED_CALL,
        "ours: peak GiB",
        "three passes: peak GiB",
        limit=0.6,
        at_most=True,
    ),
)


def text(
    scene: Scene,
    every: Sequence[Part],
    command: str,
    identity: Mapping[str, str],
    for_plan: constants.Found,
) -> str:
    """The whole report, of what there is so far. identity: of the machine."""
    outcomes = {part.name: scene.outcomes(part.name) for part in every}
    known = [outcome for found in outcomes.values() for outcome in found.values()]
    dates = sorted({outcome.date for outcome in known})
    commits = sorted({outcome.commit or "not from a checkout" for outcome in known})
    versions = ", ".join(f"{name} {value}" for name, value in identity.items() if name != "device")
    smoke = "A smoke run: its figures say that the code works, nothing about speed.\n"
    cpu = "Not run on a GPU.\n"
    return scene.shown(
        "\n".join(
            [
                "# `poa-ds bench gpu`",
                "",
                f"    {command}",
                "",
                f"{versions}. {' to '.join(dict.fromkeys((*dates[:1], *dates[-1:])))}, "
                f"commit {', '.join(commits)}.",
                "OUT stands for its folder, CHECKOUT for that of the code.\n",
                *([cpu] if scene.device == "cpu" else []),
                *([smoke] if scene.smoke else []),
                *_targets(scene, outcomes),
                *_constants(scene, for_plan),
                *(line for part in every for line in _part(part, outcomes[part.name])),
            ]
        )
    )


def _targets(scene: Scene, outcomes: Outcomes) -> list[str]:
    rows = [(t.what, t.verdict(outcomes)) for t in TARGETS]
    rows.append((f"the counted floor at least {100 * FLOOR:.0f} % of the time", _floor(scene)))
    if scene.device == "cpu" or scene.smoke:
        rows = [(what, "not judged: no full run on a GPU") for what, _ in rows]
    lines = [f"| {what} | {verdict} |" for what, verdict in rows]
    return ["## Targets", "", "| target | verdict |", "|---|---|", *lines, ""]


def _floor(scene: Scene) -> str:
    """Of the products and the update alone, at what this machine's products and copies reach."""
    step = parts.step_record(scene, parts.VIT, parts.PUBLISHED)
    found = held_to_floor(step, scene.record("machine"))
    if found is None:
        return "not judged: it needs the parts machine and step"
    milliseconds, share = found
    met = "met" if share >= FLOOR else "MISSED"
    return f"{met}: {100 * share:.0f} % (the floor is {milliseconds:.1f} ms)"


def _constants(scene: Scene, found: constants.Found) -> list[str]:
    kind, of_kind = found
    lines = ["## What `poa-ds plan` may suppose", ""]
    if kind is None:
        return [*lines, f"Not known: {of_kind}.", ""]
    rows = [f"| {n} | {c.value:.4g} {c.unit} | {_cell(c.source)} |" for n, c in of_kind.items()]
    return [
        *lines,
        f"`--gpu {kind} --measured {scene.constants.name}`",
        "",
        "| | | |",
        "|---|---:|---|",
        *rows,
        "",
    ]


def _part(part: Part, outcomes: Mapping[str, Outcome]) -> list[str]:
    lines = [f"## {part.title}", ""]
    for call in part.calls:
        outcome = outcomes.get(call.name)
        lines += [f"### {call.name}", ""]
        if outcome is None:
            lines += ["Not begun.", ""]
            continue
        lines += [f"    {outcome.command}", ""]
        if outcome.why:
            lines += [f"**{outcome.status}**: {_cell(outcome.why)}", ""]
        if outcome.figures:
            rows = [f"| {_cell(k)} | {_cell(_number(v))} |" for k, v in outcome.figures.items()]
            lines += ["| | |", "|---|---:|", *rows, ""]
    return lines


def _number(value: float | str) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else f"{value:.4g}"


def _cell(text: str) -> str:
    """Of a Markdown table: one line, no bar."""
    return " ".join(text.split()).replace("|", "\\|")
