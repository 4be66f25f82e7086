"""A thread per rank that ends it when nothing moves any more, or when it is told to stop twice.

A rank that hangs, or a host that is cut off, is otherwise noticed after 30 minutes at best.
"""

import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from poa_ds.run import exit_status
from poa_ds.run.faults import LOST_PAUSE_SECONDS, leave, lost, name
from poa_ds.system.console import say
from poa_ds.system.presence import Presence
from poa_ds.system.rendezvous import complete_environment
from poa_ds.system.stopping import Requests

LOOK_SECONDS = 0.5
# set-up, the first step, the start of an evaluation and a checkpoint take longer than a step
SLOW_SECONDS = 600.0
NCCL_SECONDS = 540.0  # after 600 NCCL ends a rank itself, and names none of the others
STOP_SECONDS = 120.0  # from a request to the end of the step
ROLL_CALL_SECONDS = 5.0  # the watchdogs of the ranks notice the same fault within this time
ASKING_SECONDS = 30.0  # a roll call and an import on a busy machine
LAST_WORDS_SECONDS = 5.0  # the run's folder may be what does not answer
NAMED = 8  # ranks that one message names
WAITS = "waits for other ranks"
# NCCL's collectives return at once: a rank waits where it reads what they give, in dist.on_host
COLLECTIVES = ("torch/distributed", "deepspeed/comm", "poa_ds/system/dist.py")
SET_UP = "set-up"


@dataclass(frozen=True)
class Phase:
    """What the rank is doing; replaced as a whole, because two threads look at it."""

    doing: str
    details: Callable[[], str]
    allowed_seconds: float
    stop_seconds: float  # from a request to the end of the step
    since: float = field(default_factory=time.monotonic)


class Watchdog:
    """`beat` says that there is progress, and what begins. timeout_seconds 0: it is never late."""

    def __init__(self, requests: Requests, timeout_seconds: float) -> None:
        self.requests = requests
        self._timeout_seconds = timeout_seconds or math.inf
        self.most_seconds = math.inf  # whatever the recipe says: NCCL_SECONDS where that is used
        self.last_words: Callable[[], None] = lambda: None  # said behind its own message
        self._presence = Presence(complete_environment(os.environ))
        self.beat(SET_UP, slow=True)
        self._watches = True
        # a daemon: the process ends without asking it
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(
        self,
        doing: str,
        *,
        slow: bool = False,
        stops: bool = False,
        details: Callable[[], str] = lambda: "",
    ) -> None:
        """Progress was made, `doing` begins.

        slow: it may take SLOW_SECONDS in any case, but a request ends it sooner if it `stops`, as
        everything does that is not slow. details: more to say about it, if need be.
        """
        allowed_seconds = max(self._timeout_seconds, SLOW_SECONDS if slow else 0.0)
        if math.isfinite(self._timeout_seconds):
            allowed_seconds = min(allowed_seconds, self.most_seconds)
        stop_seconds = STOP_SECONDS if stops or not slow else math.inf
        self._phase = Phase(doing, details, allowed_seconds, stop_seconds)

    def rest(self) -> None:
        """Stop watching: this rank is about to end, whatever is asked of it."""
        self._watches = False

    def where(self) -> str:
        """What this rank is doing, in which step and with which sub-networks."""
        phase = self._phase
        return ", ".join(text for text in (phase.doing, phase.details()) if text)

    def _watch(self) -> None:
        while self._watches:
            number = self.requests.look()
            if number:
                say(f"poa_ds.train: {name()} ends at once, without saving: asked a second time")
                leave(exit_status.of_signal(number))
            if self._phase.doing == SET_UP and (gone := self._presence.gone()):
                self._follow(gone[0])
            if _is_late(self._phase, self.requests.wanted_since):
                self._give_up(self._phase)
            time.sleep(LOOK_SECONDS)

    def _follow(self, gone: int) -> None:
        """End as another rank of this machine did, which nothing else tells before the first step.

        Not before it: one that has the same fault to tell, or the launcher, may be quicker.
        """
        time.sleep(LOST_PAUSE_SECONDS)
        if self._watches and self._phase.doing == SET_UP:
            lost(f"rank {gone} ended during {SET_UP}, see its message")
            leave(exit_status.LOST)

    def _give_up(self, phase: Phase) -> None:
        """Say what this rank and the others are doing, and end it."""
        seconds, main = time.monotonic() - phase.since, threading.main_thread().ident
        stack = traceback.extract_stack(sys._current_frames()[main])
        waits = any(part in stack[-1].filename for part in COLLECTIVES)
        called = _call_roll(WAITS if waits else phase.doing)
        answers = called[0] if called else None
        lines = [
            f"poa_ds.train: {name()} gives up: no progress for {seconds:.0f} s "
            f"(step_timeout_seconds), {self.where()}",
            *([f"it {WAITS}"] if waits else []),
            *(_about_others(answers) if called else []),
        ]
        first = min(answers) if answers else -1
        if not waits or first in (-1, int(os.environ.get("RANK", "0"))):  # one stack is enough
            lines += ["its main thread:", *"".join(traceback.format_list(stack)).splitlines()]
        say("\n  ".join(lines))
        _try(self.last_words, LAST_WORDS_SECONDS)
        leave(exit_status.HUNG)


def _call_roll(answer: str) -> list[dict[int, str] | None]:
    """[what the ranks answer]; [] where this one is not far enough to ask them."""
    found = []

    def ask() -> None:
        from poa_ds.system import (
            dist,  # torch: seconds to import, and the watchdog starts before that
        )

        found.append(dist.roll_call(answer, ROLL_CALL_SECONDS))

    _try(ask, ASKING_SECONDS)
    return found


def _try(work: Callable[[], None], seconds: float) -> None:
    """Do it for that long at most: it may hang where the main thread does, in an import even."""
    trying = threading.Thread(target=work, daemon=True)
    trying.start()
    trying.join(seconds)


def _is_late(phase: Phase, wanted_since: float) -> bool:
    """wanted_since: when a stop was asked for, infinite as long as nobody asks."""
    now = time.monotonic()
    if now - max(phase.since, wanted_since) > phase.stop_seconds:
        return True
    return now - phase.since > phase.allowed_seconds


def _about_others(answers: Mapping[int, str] | None) -> list[str]:
    """Lines about the ranks that explain the silence. None: the store of rank 0 is silent."""
    if answers is None:
        return ["rank 0 does not answer: its process is stopped, or its host cut off"]
    lines = (
        [f"do not wait for others: {_by_doing(answers)}"] if set(answers.values()) - {WAITS} else []
    )
    silent = [rank for rank in range(int(os.environ.get("WORLD_SIZE", "1"))) if rank not in answers]
    if silent:
        lines.append(
            f"no answer from {_ranks(silent)}: stopped processes, a host that is cut off, or not "
            "there yet"
        )
    return lines


def _by_doing(answers: Mapping[int, str]) -> str:
    """`rank 38: waiting for images; ranks 0, 1, ...: training`: what few ranks do comes first."""
    by_doing: dict[str, list[int]] = {}
    for rank, doing in sorted(answers.items()):
        if doing != WAITS:
            by_doing.setdefault(doing, []).append(rank)
    groups = sorted(by_doing.items(), key=lambda group: len(group[1]))
    return "; ".join(f"{_ranks(ranks)}: {doing}" for doing, ranks in groups[:NAMED])


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:NAMED])) + (", ..." if len(ranks) > NAMED else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"
