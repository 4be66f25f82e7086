"""The ranks of a command that a launcher may have started several times, and its locks."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed

from poa_ds.system import dist, lock, rendezvous
from poa_ds.system.console import say
from poa_ds.system.errors import UserError


@contextmanager
def all_ranks() -> Iterator[torch.device]:
    """The device of this rank, in a process group where a launcher started several."""
    gpu = torch.cuda.is_available()
    rendezvous.prepare_environment()
    rendezvous.check_port(os.environ)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    joins = int(os.environ["WORLD_SIZE"]) > 1 and not torch.distributed.is_initialized()
    if joins:
        torch.distributed.init_process_group("nccl" if gpu else "gloo")
    yield device
    if joins:
        torch.distributed.destroy_process_group()


@contextmanager
def listening() -> Iterator[list[int]]:
    """A list in which SIGTERM is noted as long as this lasts."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def held(folder: Path, what: str, *, name: str) -> Iterator[None]:
    """The lock `name` of a folder is for the block this command's, all ranks. A collective.

    what: the command, in words. UserError, on all ranks: another command has it.
    """
    with ExitStack() as own:
        trouble = ""
        if dist.is_main():
            try:
                own.enter_context(lock.held(folder, what, lost=_taken_over, name=name))
            except UserError as error:
                trouble = str(error)
        if trouble := dist.broadcast_object(trouble):
            raise UserError(trouble)
        yield


def _taken_over(message: str) -> None:
    say(f"poa-ds: error: {message}")
    os.kill(os.getpid(), signal.SIGTERM)
