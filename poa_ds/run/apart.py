"""A part of a program in a process of its own, which gets the signals of this one."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from poa_ds.run import exit_status
from poa_ds.system import stopping


def apart(work: Callable[..., None], *given: object) -> int:
    """Carry out `work` of a module's top level, with what can be pickled; its exit status.

    A process group of its own: signals of the terminal reach it once, from here.
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_apart, args=(work, *given))
    process.start()

    def hand_on(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(process.pid, number)

    requests = (signal.SIGINT, *stopping.requests())
    handlers = {number: signal.signal(number, hand_on) for number in requests}
    process.join()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    status = process.exitcode
    return status if status >= 0 else exit_status.of_signal(-status)


def _apart(work: Callable[..., None], *given: object) -> None:
    os.setpgrp()
    work(*given)
