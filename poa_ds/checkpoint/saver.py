"""Writing checkpoints while training goes on, and what happens when the disk does not take it.

Each rank copies what it owns to the CPU's memory; a thread writes that while training goes on.
`poll` asks all ranks after each step, as long as a checkpoint is under way: when every file is on
the disk, a thread of the main rank gives the folder its name, sets `latest` and prunes. So
collectives stay on the main thread, and all ranks know of a failure after the same step.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from poa_ds.checkpoint import folders, tensor_file
from poa_ds.checkpoint.state import EXTRA, Snapshot
from poa_ds.system import dist
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.versions import versions

MOST_FAILURES = 2  # so many checkpoints in a row that could not be saved end the run


class _Job:
    """Work in a thread. result and error: once it is done."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.result: Any = None
        self.error = ""
        # a daemon: a disk that hangs must not keep a process alive that is told to end
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except UserError as error:
            self.error = str(error)
        except OSError as error:
            self.error = ": ".join(filter(None, (error.filename, error.strerror)))
        except Exception as error:  # told on the main thread, by all ranks
            self.error = f"{type(error).__name__}: {error}"
        self._work = lambda: None  # lets go of the copies

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()


class Saver:
    """The checkpoints of one run. Its methods are collectives: at the same step on all ranks.

    device: of the collectives. saved_step: of the checkpoint that the run continues from.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep_last: int,
        keep_every_steps: int,
        background: bool,
        device: torch.device | str = "cpu",
        saved_step: int = -1,
    ) -> None:
        self.root, self.background = root, background
        self._keep_last, self._keep_every_steps = keep_last, keep_every_steps
        self._device = device
        self._begun_step = saved_step
        self._snapshot: Snapshot | None = None  # of the checkpoint that is under way
        self._job: _Job | None = None
        self._committing = False
        self._failures = 0  # in a row
        self.newest: Path | None = None  # what this run has saved last
        self._made: dict[str, str] = {}
        if dist.is_main():
            self._made = versions()
            try:
                folders.clean(root)
            except OSError as error:
                raise UserError(f"{root} cannot be written: {error}") from error
        dist.barrier()  # or another rank's first file could be taken for a leftover

    def begin(self, snapshot: Snapshot) -> None:
        """Start to save; waits for the checkpoint before, if that is still under way.

        Nothing happens where this step is saved already, or about to be.
        """
        if snapshot.step == self._begun_step:
            return
        if self._job is not None:
            if dist.is_main():
                say(
                    f"waiting: {self._folder()} is still being written and the next checkpoint is "
                    "due; the disk is slow or checkpoint.every_epochs too small"
                )
            self._advance(wait=True)
        self._snapshot, self._committing = snapshot, False
        self._begun_step = snapshot.step
        self._job = _Job(lambda: _write(self.root, snapshot))
        if not self.background:
            self._advance(wait=True)

    def poll(self) -> None:
        """Take a checkpoint that is under way further. After every step."""
        self._advance(wait=False)

    def finish(self) -> None:
        """Wait until it is complete. UserError: the last one that was begun could not be saved."""
        self._advance(wait=True)
        if self._failures:
            raise UserError(
                f"the last checkpoint could not be saved (see above); {self._newest_whole()}, and "
                "the same command continues from it once the folder can be written again"
            )

    def _advance(self, *, wait: bool) -> None:
        while self._job is not None:
            if wait:
                self._job.wait()
            busy = torch.tensor([float(not self._job.done)], device=self._device)
            if dist.on_host(dist.all_sum(busy))[0]:  # somewhere
                return
            outcomes = dist.all_gather_objects((self._job.result, self._job.error))
            errors = [f"rank {i}: {error}" for i, (_, error) in enumerate(outcomes) if error]
            if errors:
                self._failed(errors)
            elif self._committing:
                self.newest, self._failures = self._folder(), 0
                self._job = self._snapshot = None
            else:
                self._commit([record for record, _ in outcomes])

    def _folder(self) -> Path:
        assert self._snapshot
        return folders.folder_of(self.root, self._snapshot.step)

    def _commit(self, shards: list[dict[str, Any]]) -> None:
        """Everything is on the disk: the main rank names the folder, the others have no work."""
        assert self._snapshot
        about, extra = dict(self._snapshot.about), self._snapshot.extra
        root, step, made = self.root, self._snapshot.step, self._made

        def name_and_prune() -> None:
            described = _written(folders.partial_of(root, step) / EXTRA, extra)
            manifest = {"format": folders.FORMAT, **about, "made": made}
            manifest |= {"shards": shards, "extra": described}
            newest = folders.commit(root, step, manifest)
            try:
                folders.prune(
                    root,
                    newest,
                    keep_last=self._keep_last,
                    keep_every_steps=self._keep_every_steps,
                )
            except (OSError, UserError) as error:  # the new one is complete all the same
                text = f"warning: an older checkpoint could not be removed: {error}"
                say(text)

        self._committing = True
        self._job = _Job(name_and_prune if dist.is_main() else lambda: None)

    def _failed(self, errors: list[str]) -> None:
        """Go on with the older checkpoint, but not for long."""
        folder = self._folder()
        self._failures += 1
        if dist.is_main():
            # no thread of any rank writes any more
            folders.discard(self.root, folder)
        self._job = self._snapshot = None
        self._begun_step = -1
        shown = "; ".join(errors[:3]) + (f" and {len(errors) - 3} more" if errors[3:] else "")
        what = f"{folder} could not be saved: {shown}"
        if self._failures >= MOST_FAILURES:
            raise UserError(
                f"{what}. That is {self._failures} in a row, so the run stops; "
                f"{self._newest_whole()}. Make room or mend the folder; the same command continues"
            )
        if dist.is_main():
            say(
                f"warning: {what}. Training goes on and tries again at the next checkpoint; "
                f"{self._newest_whole()}. Another failure stops the run"
            )

    def _newest_whole(self) -> str:
        found = folders.newest(self.root)
        return f"the newest checkpoint is {found}" if found else "there is no checkpoint"


def _write(root: Path, snapshot: Snapshot) -> dict[str, Any]:
    """This rank's file on the disk, as the manifest describes it."""
    folder = folders.partial_of(root, snapshot.step)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"shard-{dist.rank():05d}.safetensors"
    return _written(path, snapshot.arrays) | {"pieces": snapshot.pieces}


def _written(path: Path, arrays: dict) -> dict[str, Any]:
    try:
        size, crc = tensor_file.write(path, arrays)
    except OSError as error:
        raise UserError(f"{path.name}: {error.strerror}") from error
    return {"file": path.name, "bytes": size, "crc32": crc}
