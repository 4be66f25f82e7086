"""A training from Python, in one call: `poa_ds.train(images, recipe=..., out=...)`.

It runs in processes of its own, started by `poa-ds launch`, and ends as that does: the same call
continues, and one who waits for it learns of its failure in its own words.
"""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from poa_ds.run import exit_status
from poa_ds.system.console import tell
from poa_ds.system.errors import UserError
from poa_ds.system.printable import printable_lines
from poa_ds.system.processes import Group, gpus
from poa_ds.system.run_folder import RunFolder

LOOK_SECONDS = 0.2
OF_SEVERAL = "zero2"  # DeepSpeed's file where several processes train and none is named
PROBLEM = re.compile(rb"^[^\n]*\berror: ", re.MULTILINE)  # where a program says what ended it
# what a command that ran in this process has set: launched ranks have their own
RANKS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
TOLD = 4000  # bytes of the log that an error shows, at most


def train(
    images: str | os.PathLike | Mapping[str, float],
    *,
    recipe: str | os.PathLike,
    out: str | os.PathLike,
    queries: str | os.PathLike = "",
    deepspeed: str | os.PathLike = "",
    processes: int | None = None,
    max_restarts: int = 0,
    **overrides: object,
) -> "Run":
    """A training that has begun, or goes on where the one in `out` stood.

    images: a folder of images, a list of them, or shards (several: with weights). queries: those
    whose k-NN accuracy is measured along the way; empty: none is, whatever the recipe names.
    recipe: a file or a shipped name; deepspeed: a file or a name such as zero3, zero2 where
    several processes train and none is named. processes: one per GPU, else 1. overrides: keys of
    the recipe, sections as dicts: schedule={"epochs": 20}, log_every=5. UsageError: a key, a value
    or a place is wrong; nothing was started.
    """
    from poa_ds.recipe import checks, load

    mixed = isinstance(images, Mapping)
    own: dict[str, object] = {"output_dir": out, "evaluation.queries": queries}
    own |= {"data.train": "", "data.mix": images} if mixed else {"data.train": images}
    words = [f"{key}={_text(value)}" for key, value in (own | overrides).items()]
    if threading.current_thread() is not threading.main_thread():
        raise UserError("poa_ds.train: call it in the main thread, a training ends with its thread")
    checked = load.recipe(Path(recipe), words)
    checks.check_places(checked)
    options = ["--max-restarts", str(max_restarts)]
    options += ["--nproc", str(processes)] if processes is not None else []
    if not deepspeed and (processes or gpus()) > 1:
        deepspeed = OF_SEVERAL
    own_file = ["--deepspeed_config", str(deepspeed)] if deepspeed else []
    launched = ["-u", "-m", "poa_ds.cli", "launch", *options, "--", "--config", str(recipe)]
    return Run._started(Path(checked.output_dir), [sys.executable, *launched, *own_file, *words])


class Run:
    """A run and the processes that train it. folder: its output_dir; log: what they print."""

    def __init__(self, folder: Path, group: Group, log: Path, *, begun: int) -> None:
        """begun: the byte of the log at which this training begins."""
        self.folder, self.log = folder, log
        self._group, self._begun, self._shown = group, begun, begun
        self._stopped = False

    @classmethod
    def _started(cls, folder: Path, command: Sequence[str]) -> Self:
        log = RunFolder(folder).log
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as file:
                begun = file.tell()
                environment = {k: v for k, v in os.environ.items() if k not in RANKS}
                return cls(folder, Group(command, environment, output=file), log, begun=begun)
        except OSError as error:
            raise UserError(f"{log} cannot be written: {error.strerror}") from error

    def __repr__(self) -> str:
        status = self._group.status()
        state = "is training" if status is None else f"ended with status {status}"
        return f"<Run {self.folder}: {state}>"

    @property
    def running(self) -> bool:
        """Whether its processes are at work."""
        return self._group.status() is None

    def wait(self, seconds: float | None = None, *, show: bool = True) -> Self:
        """This run, when it has come to its end, or after so many seconds.

        show: what it prints appears here too. KeyboardInterrupt ends the waiting, not the training.
        UserError: it failed, in its own words; or it was stopped from outside, and goes on by the
        same call.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while self.running and (end is None or time.monotonic() < end):
            self._show(show)
            time.sleep(LOOK_SECONDS)
        self._show(show)
        status = self._group.status()
        if status in (None, exit_status.DONE):
            return self
        if status == exit_status.STOPPED and self._stopped:
            return self
        again = "; the same call continues" if status == exit_status.STOPPED else ""
        raise UserError(
            f"{self.folder}: the training ended with status {status}{again}\n{self._words()}\n"
            f"(all that it printed: {self.log})"
        )

    def stop(self) -> Self:
        """Asks it to save and to end, which `wait` awaits; the same call of `train` continues."""
        self._stopped = True
        if self.running:
            self._group.signal_first(signal.SIGTERM)
        return self

    def sizes(self) -> list[dict[str, Any]]:
        """Every size with its cost and what was measured of it, as `poa_ds.sizes`."""
        from poa_ds.evaluate.listing import sizes

        return sizes(self.folder)

    def report(self, out: str | os.PathLike | None = None) -> Path:
        """The page to choose a size by, written as it stands now: the run's report.html."""
        from poa_ds.report.command import write

        path = RunFolder(self.folder).report if out is None else Path(out)
        write([self.folder], path)
        return path

    def load(self, size: str | None = None) -> Any:
        """The network (nn.Module), of one size or elastic, as `poa_ds.load`."""
        from poa_ds.export.load import load

        return load(self.folder, size)

    def embed(self, images: str | os.PathLike, sizes: str | Sequence[str] = ()) -> Any:
        """The Features of any images, as `poa_ds.embed`."""
        from poa_ds.evaluate.embed.inside import embed

        return embed(self.folder, images, sizes)

    def _show(self, show: bool) -> None:
        """Print what has come since the last time, up to the end of a line."""
        with open(self.log, "rb") as file:
            file.seek(self._shown)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1] if self.running else text
        self._shown += len(whole)
        if show and whole:
            tell(whole.decode(errors="replace").removesuffix("\n"))

    def _words(self) -> str:
        """What the training said of its end: from its first error on, or its last lines."""
        with open(self.log, "rb") as file:
            file.seek(self._begun)
            text = file.read()
        found = PROBLEM.search(text)
        told = text[found.start() :][:TOLD] if found else text[-TOLD:]
        return printable_lines(told.decode(errors="replace").strip()) or "it has printed nothing"


def _text(value: object) -> str:
    """A value as an override has it."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    import yaml

    return yaml.safe_dump(
        _plain(value), default_flow_style=True, width=float("inf"), sort_keys=False
    ).removesuffix("...\n").strip()  # fmt: skip


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
