"""Loader processes, and how they end: what keeps one from working ends the run, with its cause.

Of an error outside of a request, in the threads that hand batches over, PyTorch only prints a
traceback: the process that waits for the batch would wait for ever.
"""

import multiprocessing.queues
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader, Dataset

from poa_ds.system import last_words, limits
from poa_ds.system.errors import UserError
from poa_ds.system.stopping import leave_signals_to_the_parent


def loaded(dataset: Dataset, requests: Any, workers: int) -> Iterator[Any]:
    """Items of the dataset, one per request (None: of an iterable dataset).

    DataLoader gives each worker one thread; its own generator keeps it from moving the state of
    torch's global one. UserError: what a worker died of.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),
        worker_init_fn=partial(_begin, last_words.listen()) if workers else None,
    )
    try:
        yield from loader
    except (RuntimeError, OSError, EOFError) as error:
        cause = last_words.heard() or limits.explained(error)
        if cause:
            raise UserError(f"loading images: {cause}") from error
        raise


def _begin(saying: Connection, _: int) -> None:
    """What a worker does first.

    It says nothing when the main process is gone while it hands over a batch: an interrupt reaches
    both, and the thread that hands tensors over would print its lost connection.
    """
    leave_signals_to_the_parent()

    def end(error: BaseException) -> NoReturn:
        saying.send(limits.explained(error) or f"{type(error).__name__}: {error}")
        os._exit(1)

    def hook(kind: type, error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            end(error)

    def unfed(error: BaseException, item: object) -> None:
        end(error)

    sys.excepthook = hook
    threading.excepthook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)
    # a hook that the standard library keeps for its own executors
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(unfed)
