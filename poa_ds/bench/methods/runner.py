"""Carries out what is missing of a table: one training after the other, each its own process."""

import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from poa_ds.bench.methods.runs import Run
from poa_ds.recipe import load
from poa_ds.system import files, json_text, versions
from poa_ds.system.console import tell
from poa_ds.system.errors import UserError
from poa_ds.system.printable import duration
from poa_ds.system.processes import LOOK_SECONDS, Group, last_lines

GRACE_SECONDS = 60.0  # a training that is asked to stop saves first
SAID_SECONDS = 60.0  # between two lines about a training


@dataclass(frozen=True)
class Outcome:
    """How the last attempt at a run went. why: it failed; empty where it did not."""

    why: str
    seconds: float
    date: str
    commit: str
    machine: str = ""
    load: float | None = None  # of the machine when it ended


def run(plan: Callable[[], Sequence[Run]], out: Path) -> None:
    """All that is not done yet. plan: the runs as they are known now, asked again before each."""
    tried: set[str] = set()
    rates: list[tuple[float, float]] = []  # FLOPs, seconds
    while True:
        every = plan()
        done = {run.name for run in every if run.done}
        open_ = [run for run in every if run.name not in done | tried]
        if not open_:
            return
        ready = [run for run in open_ if done.issuperset(run.needs)]
        if not ready:
            _give_up(open_, out)
            return
        now = ready[0]
        tried.add(now.name)
        left = _left(open_, rates)
        tell(f"{len(done) + 1} of {len(every)}: {now.name}, {now.steps:,} steps{left}")
        anew = not now.folder.exists()
        outcome = _train(now, out)
        keep(out, now.name, outcome)
        if outcome.why:
            tell(f"{now.name} failed: {outcome.why}; the others go on")
        else:
            rates += [(now.flops() or 0.0, outcome.seconds)] if anew else []
            tell(f"{now.name}: done in {duration(outcome.seconds)}")


def check(runs: Sequence[Run], out: Path) -> None:
    """UserError: a run that is there was made by another recipe than it has now."""
    for run in runs:
        settled, recipe = run.flops() is not None, _recipe(run, out)
        if settled and run.folder.exists() and load.kept_recipe(recipe) != run.recipe:
            raise UserError(
                f"{out} has {run.name} with another recipe than now (table, steps, data or --equal"
                f" differ): name another --out, or remove {run.folder}"
            )


def _recipe(run: Run, out: Path) -> Path:
    return out / "recipes" / f"{run.name}.yaml"


def _left(runs: Sequence[Run], rates: Sequence[tuple[float, float]]) -> str:
    """How long all of them will take, at the rate of those of this call."""
    if not rates:
        return ""
    flops, seconds = map(sum, zip(*rates, strict=True))
    counted = [run.flops() for run in runs]
    known = [f for f in counted if f is not None]
    if not (flops and known):
        return ""
    left = sum(known) * len(runs) / len(known) * seconds / flops
    return f"; about {duration(left)} left for {len(runs)} runs"


def _give_up(runs: Sequence[Run], out: Path) -> None:
    for run in runs:
        why = f"it needs {', '.join(run.needs)}, not all of which is done"
        keep(out, run.name, Outcome(why, 0.0, _today(), versions.versions()["commit"]))
        tell(f"{run.name} is left out: {why}")


def _train(run: Run, out: Path) -> Outcome:
    """One training to its end; it continues what an earlier call left of it."""
    recipe = _recipe(run, out)
    for folder in (recipe.parent, out / "logs", out / "runs"):
        folder.mkdir(parents=True, exist_ok=True)
    if run.source:
        from poa_ds.bench.methods import basis  # torch: seconds, which --help does without

        try:
            basis.write(run)
        except UserError as error:
            return Outcome(str(error), 0.0, _today(), versions.versions()["commit"])
    files.replace_text(recipe, load.to_yaml(run.recipe))
    log, begun = out / "logs" / f"{run.name}.log", time.monotonic()
    command = [sys.executable, "-m", "poa_ds.train", "--config", str(recipe)]
    with log.open("ab") as output:
        group = Group(command, _environment(), output=output)
        with group.ending(GRACE_SECONDS, first=True):
            status = _wait(group, run.name, log)
    why = "" if run.done else f"status {status}, {log}: {last_lines(log)}"
    seconds, commit = time.monotonic() - begun, versions.versions()["commit"]
    return Outcome(why, seconds, _today(), commit, _machine(), os.getloadavg()[0])


def _machine() -> str:
    import torch  # seconds, which --help does without

    from poa_ds.bench import report

    found = report.machine("cuda" if torch.cuda.is_available() else "cpu")
    return (
        f"{found.processor}, {found.cores} cores, Python {platform.python_version()}, torch"
        f" {torch.__version__}"
    )


def _wait(group: Group, name: str, log: Path) -> int:
    said = time.monotonic()
    while (status := group.status()) is None:
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - said >= SAID_SECONDS:
            said = time.monotonic()
            tell(f"  {name}: {last_lines(log, 1)}")
    return status


def _environment() -> Mapping[str, str]:
    """One thread for each process, unless the caller says otherwise; the CPU where no GPU is."""
    import torch  # seconds, which --help does without

    device = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
    return {"OMP_NUM_THREADS": "1", **os.environ, **device, "PYTHONUNBUFFERED": "1"}


def _today() -> str:
    return datetime.date.today().isoformat()


def outcomes(out: Path) -> dict[str, Outcome]:
    """Of every run that was tried, by its name."""
    path = out / "outcomes.json"
    if not path.exists():
        return {}
    try:
        return {n: Outcome(**found) for n, found in json_text.parse(path.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, the runs are kept") from error


def keep(out: Path, name: str, outcome: Outcome) -> None:
    """On the disk when this returns."""
    found = {**outcomes(out), name: outcome}
    text = json.dumps({n: asdict(o) for n, o in found.items()}, indent=1)
    files.replace_text(out / "outcomes.json", text + "\n")
