"""Ranks of the training program that start fast; after the imports all is as under a launcher.

`Ranks` does what launchers do: when one rank fails it ends the others.
"""

import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.distributed.programs.launch import environment, fork, free_port

PATIENCE_SECONDS = 300.0  # on a loaded machine
# as DeepSpeed's launcher has it: it looks once a second, and gives a rank so long to end by itself
LOOK_SECONDS, GRACE_SECONDS = 1.0, 30.0


class Ranks:
    """`world` processes that train with `words`; their output goes to the file `log`."""

    def __init__(
        self, world: int, words: Sequence[str], log: Path, *, loaded: Path | None = None
    ) -> None:
        """loaded: a folder that gets what every rank holds right after loading a checkpoint."""
        port, self.log = free_port(), log
        self.processes = [
            fork(_rank, environment(rank, world, port), log, list(words), loaded)
            for rank in range(world)
        ]

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, happened: Callable[[str], object]) -> str:
        """The output, as soon as `happened` of it; fails when the ranks end before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            running = any(process.is_alive() for process in self.processes)
            said = self.said()
            if happened(said):
                return said
            assert running, f"the ranks ended before that:\n{said[-3000:]}"
            assert time.monotonic() < deadline, f"that did not happen:\n{said[-3000:]}"
            time.sleep(0.03)

    def until_step(self, step: int) -> str:
        """The output, once that step is done or a later one."""
        steps = re.compile(r"^step (\d+):", re.MULTILINE)
        return self.until(lambda said: any(int(n) >= step for n in steps.findall(said)))

    def send(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """A signal to some or all ranks."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            os.kill(self.processes[rank].pid, number)

    def wait(self) -> list[int]:
        """The exit statuses, once all have ended; after a failure the others are told to end."""
        kill_at = time.monotonic() + PATIENCE_SECONDS
        told = False
        while any(process.is_alive() for process in self.processes):
            time.sleep(LOOK_SECONDS)
            if not told and any(process.exitcode for process in self.processes):
                kill_at, told = time.monotonic() + GRACE_SECONDS, True
                self._tell(signal.SIGTERM)
            if time.monotonic() > kill_at:
                self._tell(signal.SIGKILL)
        return [process.exitcode for process in self.processes]

    def kill(self) -> list[int]:
        self._tell(signal.SIGKILL)
        return self.wait()

    def _tell(self, number: int) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)


def started(
    words: Sequence[str], variables: Mapping[str, str], log: Path
) -> multiprocessing.Process:
    """What `python -m poa_ds.train ...` starts, given so; its output goes to `log`."""
    assert list(words[1:3]) == ["-m", "poa_ds.train"], words
    return fork(_rank, variables, log, list(words[3:]), None)


def finished(words: Sequence[str], variables: Mapping[str, str]) -> tuple[int, str]:
    """(exit status, all output) of that program, once it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "output.txt"
        process = started(words, variables, log)
        process.join(PATIENCE_SECONDS)
        process.kill()
        process.join()
        return process.exitcode, log.read_text()


def _rank(words: list[str], loaded: Path | None) -> None:
    """The life of a rank, as `python -m poa_ds.train` has it."""
    from poa_ds import train
    from poa_ds.run import faults

    if loaded is not None:
        _keep_what_is_loaded(loaded)
    status = train.main(words)
    if status:
        faults.leave(status)
    raise SystemExit(status)


def _keep_what_is_loaded(folder: Path) -> None:
    """Write down what the engine holds as soon as a checkpoint is loaded."""
    from poa_ds.checkpoint.state import KEYS
    from poa_ds.run import resume
    from poa_ds.system import dist

    load = resume.load

    def load_and_keep(engine, *places):
        found = load(engine, *places)
        first = {part.name: part.first for part in engine.partitions.parts}
        arrays = {
            f"{name}|{key}|{first[name]}": part.numpy()
            for key in KEYS
            for name, part in engine.partitions.state(key).items()
        }
        np.savez(folder / f"{dist.rank()}.npz", **arrays)
        return found

    resume.load = load_and_keep


def what_was_loaded(folder: Path) -> dict[str, np.ndarray]:
    """`<parameter>|<key>` -> all its elements, put together from what the ranks held."""
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            for label in arrays.files:
                name, _, first = label.rpartition("|")
                parts.setdefault(name, []).append((int(first), arrays[label]))
    return {name: _joined(found) for name, found in parts.items()}


def _joined(parts: list[tuple[int, np.ndarray]]) -> np.ndarray:
    return np.concatenate([part for _, part in sorted(parts, key=lambda part: part[0])])
