"""Trainings on frozen features that can be stopped: when they are saved, and how files are there.

FOLDER/step00000100 holds a file of tensors per part, whole or not there; older ones go.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from poa_ds.system import dist
from poa_ds.system.files import give_name, sync

Batch = TypeVar("Batch")


def learn(
    batches: Iterable[Batch],
    one: Callable[[int, Batch], None],
    keep: Callable[[int], None],
    *,
    steps: range,
    save_every: int,
    asked: Sequence[int],
    device: torch.device,
) -> bool:
    """Call `one` with each step and its batch; False where a signal came: it is saved.

    A collective. keep: saves what is so many steps old; not called behind the last step.
    """
    for step, batch in zip(steps, batches, strict=True):
        one(step, batch)
        done = step + 1
        stop = dist.any_rank(bool(asked), device) and done < steps.stop
        if stop or (done % save_every == 0 and done < steps.stop):
            keep(done)
        if stop:
            return False
    return True


def save(folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a step's parts, each rank its own. A collective."""
    target = folder / f"step{step:08d}"
    partial = folder / f".{target.name}.partial"
    if dist.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    for name, state in parts.items():
        path = file_of(partial, name)
        save_file({key: x.cpu() for key, x in state.items()}, path)
        sync(path)
    dist.barrier()
    if dist.is_main():
        shutil.rmtree(target, ignore_errors=True)
        give_name(partial, target)
        for other in saved(folder).values():
            if other != target:
                shutil.rmtree(other)
    dist.barrier()


def resume(folder: Path, device: torch.device, load: Mapping[str, Callable[[dict], None]]) -> int:
    """The step that was saved, 0 for none, when each part that is asked for has loaded its tensors.

    By any number of ranks. A collective.
    """
    found = saved(folder)
    step = dist.broadcast_object(max(found, default=0))
    for name, take in load.items() if step else ():
        take(load_file(file_of(found[step], name), device=str(device)))
    dist.barrier()
    return step


def file_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def saved(folder: Path) -> dict[int, Path]:
    """Step -> its folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return {int(p.name[4:]): p for p in found if re.fullmatch(r"step\d{8}", p.name)}
