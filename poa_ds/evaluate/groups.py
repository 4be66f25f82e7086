"""The sizes of a command that trains on their features: as many together as memory holds.

FOLDER holds what a stopped command goes on from: rows of the sizes that are done, the sizes of the
group that is in training, and its checkpoint. One command at a time works there.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from poa_ds.evaluate import score_rows
from poa_ds.evaluate.ranks import held
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.model.space import Subnet
from poa_ds.system import dist
from poa_ds.system.files import replace_text
from poa_ds.system.json_text import parse

FREE_SHARE = 0.6  # of the free memory, for what is in training


@dataclass(frozen=True)
class Groups:
    """fits: whether so many sizes may be trained together; asked for two and more."""

    folder: Path
    sizes: Sequence[Subnet]
    fits: Callable[[Sequence[Subnet]], bool]

    @property
    def checkpoints(self) -> Path:
        """Of the group that is in training."""
        return self.folder / "checkpoint"

    def alone(self) -> AbstractContextManager[None]:
        """No other command works there in the block. A collective. UserError: another does."""
        runs, kind = self.folder.parent.parent, self.folder.parent.name
        name = f"{kind}_{self.folder.name}_lock.json"
        return held(runs, f"the same eval {kind}", name=name)

    def run(
        self, trained: Callable[[Sequence[Subnet]], list[ScoreRow] | None]
    ) -> list[ScoreRow] | None:
        """The rows of all sizes; None where a signal came: the same task goes on from there."""
        done = self.folder / "rows.jsonl"
        while group := self._next(done):
            found = trained(group)
            if found is None:
                return None
            if dist.is_main():
                every = [*score_rows.read(done), *found]  # all of a group at once, or none
                replace_text(done, "".join(f"{row.to_json()}\n" for row in every))
                self._group.unlink()
                shutil.rmtree(self.checkpoints, ignore_errors=True)
            dist.barrier()
        return score_rows.read(done) if dist.is_main() else []

    def remove(self) -> None:
        """What only a stopped command needs."""
        shutil.rmtree(self.folder)
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    @property
    def _group(self) -> Path:
        return self.folder / "group.json"

    def _next(self, done: Path) -> list[Subnet]:
        """The sizes to train together now: those that were in training, or as memory allows."""
        group: list[Subnet] = []
        if dist.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            finished = {row.size for row in score_rows.read(done)}
            rest = [size for size in self.sizes if str(size) not in finished]
            begun = parse(self._group.read_bytes()) if self._group.is_file() else []
            group = [size for size in rest if str(size) in begun]
            if not group:
                shutil.rmtree(self.checkpoints, ignore_errors=True)
                group = self._cut(rest)
            replace_text(self._group, json.dumps([*map(str, group)]))
        return dist.broadcast_object(group)

    def _cut(self, rest: Sequence[Subnet]) -> list[Subnet]:
        """The first of these that fit together, one at least."""
        group: list[Subnet] = []
        for size in rest:
            if group and not self.fits([*group, size]):
                break
            group.append(size)
        return group


def allowed_bytes(gigabytes: float | None, device: torch.device) -> float:
    """What may be used on a rank: as asked for, or of what is free."""
    if gigabytes is not None:
        return 1e9 * gigabytes
    if device.type == "cuda":
        return FREE_SHARE * torch.cuda.mem_get_info(device)[0]
    return FREE_SHARE * psutil.virtual_memory().available
