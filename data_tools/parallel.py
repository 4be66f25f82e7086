"""A function over many items in several processes, with the results in the order of the items."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import connection, forkserver, get_context, parent_process, resource_tracker
from typing import TypeVar

from poa_ds.system.errors import UserError

AHEAD = 4  # results that wait for each worker at most: memory stays bounded
Item = TypeVar("Item")
Result = TypeVar("Result")


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """function(item) of every item, in their order. Fewer than two workers: in this process."""
    queue = iter(items)
    first = list(islice(queue, 2))
    if workers < 2 or len(first) < 2:  # a process costs more than one item saves
        yield from map(function, chain(first, queue))
        return
    # a fork server: forking this process itself could copy locks that its threads hold
    context = get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    _start_server()
    pool = ProcessPoolExecutor(workers, context, initializer=_start)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in chain(first, queue):
            waiting.append(pool.submit(function, item))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed (memory?): start again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_server() -> None:
    """The fork server and all that it forks never hear Ctrl-C, not even before their first line."""
    resource_tracker.ensure_running()  # by itself: it would let the signal through afterwards
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    """A worker leaves Ctrl-C to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
