"""poa-ds launch: a training through its launcher, supervised: signals handed on, faults restarted.

deepspeed leaves its ranks running when it is ended, gives them 30 seconds at most, and does not
hand their statuses on; here the run's own record counts, and nothing outlives this process.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from poa_ds import train
from poa_ds.checkpoint import folders
from poa_ds.run import exit_status, remote
from poa_ds.system import limits, paths, terminal
from poa_ds.system.arguments import count, whole
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.processes import Group, beside_python, free_port, gpus
from poa_ds.system.run_folder import RunFolder
from poa_ds.system.stopping import requests

LOOK_SECONDS = 0.2
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0
# what a stopping rank may take: the rest of its step, a checkpoint, MLflow
GRACE_SECONDS = 180.0
REMOTE_SECONDS = 60.0  # on other hosts deepspeed gives each of two ranks 30
# not mended by another try
FINAL = (
    *(exit_status.DONE, exit_status.FAILED, exit_status.WRONG_USE),
    *(exit_status.STOPPED, exit_status.INTERRUPTED),
)
CAUSES = {
    exit_status.CRASHED: "a rank failed",
    exit_status.LOST: "a rank was lost",
    exit_status.HUNG: "no progress within step_timeout_seconds",
}


@dataclass(frozen=True)
class Start:
    """What is started, time and again. records: whether the run leaves a record (no dry run)."""

    words: list[str]
    processes: int
    hostfile: Path | None
    options: list[str]
    output: Path
    records: bool

    def command(self) -> list[str]:
        """With a free port of its own: a killed run's may still be taken for a while."""
        if not self.hostfile and self.processes == 1:
            return [sys.executable, "-u", "-m", "poa_ds.train", *self.words]
        place = ["--num_gpus", str(self.processes), "--master_port", str(free_port())]
        if self.hostfile:
            place = ["--hostfile", str(self.hostfile)]
        launcher = [str(beside_python("deepspeed")), "-q", *place, *self.options]
        return [*launcher, "--module", "poa_ds.train", *self.words]


class Asked:
    """The signals that this process has received, in their order."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        for number in (signal.SIGINT, *requests()):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        """A terminal that closes sends SIGHUP, and its shell sends another."""
        if number != signal.SIGHUP or number not in self.numbers:
            self.numbers.append(number)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds launch`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--nproc",
        type=count,
        metavar="N",
        help="processes on this machine (one per GPU; without GPUs 1)",
    )
    where.add_argument(
        "--hostfile", type=paths.path, help="lines `name slots=N`: ranks on all of them"
    )
    parser.add_argument(
        "--options", default="", help='more for deepspeed, such as "--master_addr node1"'
    )
    parser.add_argument(
        "--max-restarts",
        type=whole,
        default=0,
        metavar="N",
        help="after a fault, continue from the newest checkpoint up to so many times (%(default)s)",
    )
    parser.usage = "poa-ds launch [options] -- ARGUMENTS OF poa_ds.train"
    parser.epilog = f"{parser.epilog}\n\n{exit_status.TABLE}"


def run(args: argparse.Namespace) -> int:
    """Start, hand signals on, restart; the exit status of the last attempt."""
    start, asked = _start(args), Asked()
    pause_seconds, last, left = FIRST_PAUSE_SECONDS, "nothing at all", args.max_restarts
    while True:
        kills = limits.memory_kills()
        status = _attempt(start, asked)
        if status not in FINAL and (hint := limits.memory_killed(kills)):
            say(f"poa-ds launch: {hint}")
        newest = _newest(start.output)
        if asked.numbers or status in FINAL or not args.max_restarts:
            return status
        what = f"ended with status {status} ({_cause(status)})"
        if not left or newest == last:
            why = "no restart is left" if not left else f"again with {newest or 'no checkpoint'}"
            say(f"poa-ds launch: {what}; not restarted: {why}")
            return status
        number = args.max_restarts - left + 1
        say(
            f"poa-ds launch: {what}; restart {number} of {args.max_restarts} in "
            f"{pause_seconds:.0f} s, from {newest or 'the start'}"
        )
        if _pause(pause_seconds, asked):
            return _asked_status(asked, exit_status.Ended(exit_status.STOPPED, 0))
        last, left = newest, left - 1
        pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)


def _start(args: argparse.Namespace) -> Start:
    """What the arguments ask for; wrong use is found before anything starts."""
    from poa_ds.recipe import load

    words = train.parser().parse_intermixed_args(args.words)
    recipe = load.recipe(words.config, words.overrides)
    if args.hostfile:
        remote.check_hostfile(args.hostfile)
    options = shlex.split(args.options)
    if args.hostfile and "--no_ssh" not in options:
        remote.check(args.words, os.environ)
        for secret in remote.secrets_in_file(os.environ):
            say(f"poa-ds launch: warning: {secret} will stand on command lines of other hosts")
    return Start(
        words=args.words,
        processes=args.nproc or (0 if args.hostfile else gpus() or 1),
        hostfile=args.hostfile,
        options=options,
        output=Path(recipe.output_dir),
        records=not (words.dry_run or words.print_config),
    )


def _attempt(start: Start, asked: Asked) -> int:
    """Run it once, to the end of the last of its processes; how it ended."""
    before = exit_status.mark(start.output)  # another run may be at work there: it stays

    def record() -> exit_status.Ended | None:
        fresh = start.records and exit_status.mark(start.output) != before
        return exit_status.read(start.output) if fresh else None

    device = {} if gpus() else {"DS_ACCELERATOR": "cpu"}
    group = Group(start.command(), device | os.environ)
    try:
        handed_on = 0
        while group.status() is None and len(asked.numbers) < 2:
            if len(asked.numbers) > handed_on:
                handed_on += 1
                _hand_on(group, start)
            time.sleep(LOOK_SECONDS)
        # also when the launcher died first: its ranks have noticed, and save
        group.wait(GRACE_SECONDS, unless=lambda: len(asked.numbers) > 1)
        if start.hostfile and len(asked.numbers) == 1:
            _await(record, asked)
    finally:
        group.signal(signal.SIGKILL)
        terminal.restore(sys.stderr, os.environ)
    left = record()
    if asked.numbers:
        return _asked_status(asked, left)
    if left:
        return left.status
    # 0 without a record: deepspeed ends so when its second process was killed
    return exit_status.CRASHED if start.records and group.status() == 0 else group.status()


def _hand_on(group: Group, start: Start) -> None:
    """Ask the ranks to stop.

    SIGUSR1 ends the launcher's own processes at once and is a request to ranks: they have as long
    as they need, whereas at SIGTERM the launcher kills what is there after 30 seconds. To other
    hosts deepspeed hands on what it gets itself, SIGTERM.
    """
    if start.hostfile:
        group.signal_first(signal.SIGTERM)
    else:
        group.signal(signal.SIGUSR1)


def _await(record: Callable[[], exit_status.Ended | None], asked: Asked) -> None:
    """Give ranks of other hosts, which are not in the group, the time that their launcher gives."""
    end = time.monotonic() + REMOTE_SECONDS
    while time.monotonic() < end and record() is None and len(asked.numbers) < 2:
        time.sleep(LOOK_SECONDS)


def _asked_status(asked: Asked, record: exit_status.Ended | None) -> int:
    """Of a run that was asked to end."""
    if record and record.status == exit_status.DONE:
        return exit_status.DONE
    first = asked.numbers[0]
    if first == signal.SIGINT:
        return exit_status.INTERRUPTED
    return record.status if record else exit_status.of_signal(asked.numbers[-1])


def _pause(seconds: float, asked: Asked) -> bool:
    """Wait; whether a signal has come meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not asked.numbers:
        time.sleep(LOOK_SECONDS)
    return bool(asked.numbers)


def _newest(output: Path) -> str:
    """The name of the newest checkpoint, empty without one."""
    try:
        found = folders.newest(RunFolder(output).checkpoints)
    except UserError as error:  # the run has met it as well, and the attempt has its status
        say(f"poa-ds launch: {error}")
        return ""
    return found.name if found else ""


def _cause(status: int) -> str:
    if status > 128:
        names: Iterable[signal.Signals] = signal.Signals
        return next((s.name for s in names if s == status - 128), "unknown")
    return CAUSES.get(status, "unknown")
