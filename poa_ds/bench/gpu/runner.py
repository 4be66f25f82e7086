"""Runs the parts: each program a process group of its own with a time limit, its outcome kept."""

import datetime
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from poa_ds.bench.gpu.calls import FINAL, Call, Outcome, Part, Scene
from poa_ds.run import exit_status
from poa_ds.system import versions
from poa_ds.system.console import tell
from poa_ds.system.errors import UserError
from poa_ds.system.processes import LOOK_SECONDS, Group, last_lines

GRACE_SECONDS = 20.0  # between being asked to stop and being ended
STOP_SECONDS = 60.0  # before its limit a training is asked to save and stop; in less time sooner
LEAST_SECONDS = 5.0  # nothing is begun in less


def run(scene: Scene, parts: Sequence[Part], budget: float) -> None:
    """All that is not done yet, within `budget` seconds; shared among the parts by their shares.

    Outcomes are on the disk after every call; what a part leaves of its time the others have.
    """
    end, commit = time.monotonic() + budget, versions.versions()["commit"]
    for number, part in enumerate(parts):
        outcomes = scene.outcomes(part.name)
        left = [call for call in part.calls if _is_left(call, outcomes.get(call.name))]
        if left:
            left = [call for call in part.calls if call in left or call.collects]
        if not left:
            tell(f"{part.name}: done before")
            continue
        seconds = max(0.0, end - time.monotonic())
        share = part.share / (sum(other.share for other in parts[number:]) or 1.0)
        limit = time.monotonic() + seconds * share
        tell(f"{part.name}: {part.title}, {len(left)} programs, {seconds * share:.0f} s")
        for call in left:
            outcome = _outcome(scene, part, call, limit)
            command, why = scene.shown(outcome.command), scene.shown(outcome.why)
            outcome = replace(outcome, command=command, why=why, commit=commit)
            outcomes[call.name] = outcome
            scene.keep(part.name, outcomes)
            why = f": {outcome.why}" if outcome.why else ""
            tell(f"  {call.name}: {outcome.status}{why} ({outcome.seconds:.1f} s)")


def again(outcome: Outcome) -> bool:
    """Whether the same command tries it again."""
    return outcome.status not in FINAL


def _is_left(call: Call, before: Outcome | None) -> bool:
    """Whether it is to be run. What could not exist may exist now."""
    if before is None or again(before):
        return True
    return before.status == "impossible" and not call.impossible


def _outcome(scene: Scene, part: Part, call: Call, limit: float) -> Outcome:
    """What became of one call; a mistake of the program is an outcome too."""
    today, words = datetime.date.today().isoformat(), shlex.join(["python", "-m", *call.words])
    if call.impossible:
        return Outcome("impossible", call.impossible, words, date=today)
    if call.unless and call.unless.exists():
        return Outcome("done", "", words, date=today)
    if limit - time.monotonic() < LEAST_SECONDS:
        return Outcome("timed out", "no time was left for it", words, date=today)
    _prepare(scene, part, call)
    log, begun = scene.log(part.name, call.name), time.monotonic()
    status = _status(scene, call, log, limit)
    done = Outcome("done", "", words, time.monotonic() - begun, today)
    if status is None:
        why = f"not done after {done.seconds:.0f} s, see {log.relative_to(scene.out)}"
        return replace(done, status="timed out", why=why)
    if call.goes_on and status == exit_status.STOPPED:
        done = replace(
            done, status="unfinished", why="stopped at its limit, and goes on from there"
        )
    elif status != call.expected:
        why = f"status {status}, see {log.relative_to(scene.out)}: {last_lines(log)}"
        return replace(done, status="failed", why=why)
    try:
        return replace(done, figures=call.figures())
    except UserError as error:
        return replace(done, status="failed", why=str(error))


def _prepare(scene: Scene, part: Part, call: Call) -> None:
    scene.log(part.name, call.name).parent.mkdir(exist_ok=True)
    if call.fresh:
        shutil.rmtree(call.fresh, ignore_errors=True)
    for path, text in call.files.items():
        path.write_text(text, encoding="utf-8")


def _status(scene: Scene, call: Call, log: Path, limit: float) -> int | None:
    """How the program ended; None: it was stopped at the limit. Nothing of it is left then."""
    stop = _before(limit) if call.goes_on else call.stop
    with log.open("wb") as output:
        command = [sys.executable, "-m", *call.words]
        group = Group(command, environment(scene.device), output=output)
        with group.ending(GRACE_SECONDS):
            while (status := group.status()) is None:
                time.sleep(LOOK_SECONDS)
                if time.monotonic() > limit:
                    return None
                if stop and stop():
                    group.signal_first(signal.SIGTERM)
                    stop = None
            return status


def _before(limit: float) -> Callable[[], bool]:
    """Whether it is time for a training to stop, so that it has saved at the limit."""
    last = limit - min(STOP_SECONDS, (limit - time.monotonic()) / 4)
    return lambda: time.monotonic() > last


def environment(device: str) -> dict[str, str]:
    """What the programs run in: this one's, no interpreter where there is a GPU."""
    found = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found["PYTHONUNBUFFERED"] = "1"
    return found | ({"DS_ACCELERATOR": "cpu"} if device == "cpu" else {})
