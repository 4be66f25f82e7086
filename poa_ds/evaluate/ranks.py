"""The ranks of a command that a launcher may have started several times."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed

from poa_ds.system import rendezvous


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
