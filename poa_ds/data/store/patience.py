"""A limit of time for what another side sends: slowly, never to its end, or not at all."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

AHEAD = 4  # items that wait to be taken
LOOK_SECONDS = 1.0  # between two looks whether anybody still wants them
Item = TypeVar("Item")


class TooSlow(Exception):
    """So much had come in so many seconds."""

    def __init__(self, size: int, seconds: float) -> None:
        super().__init__(size, seconds)
        self.size, self.seconds = size, seconds


def timed(
    items: Iterator[Item],
    allowed: Callable[[int], float],
    *,
    weight: Callable[[Item], int] = lambda _: 0,
) -> Iterator[Item]:
    """The items; TooSlow where the next is not there after the seconds that are allowed.

    Counted is the time spent waiting for them, not what the taker does with them; how much is
    allowed depends on the weight of the items that have come. Items are
    produced in a thread, which is left alone when time is up: nothing else ends a system call, or a
    library that has no limit of its own.
    """
    arrived: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(AHEAD)
    unwanted = threading.Event()

    def hand_over(item: Item | None, error: BaseException | None) -> None:
        while not unwanted.is_set():
            try:
                return arrived.put((item, error), timeout=LOOK_SECONDS)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                hand_over(item, None)
                if unwanted.is_set():
                    return
            hand_over(None, StopIteration())
        except BaseException as error:
            hand_over(None, error)

    threading.Thread(target=produce, daemon=True).start()
    waited, size = 0.0, 0
    try:
        while True:
            seconds, begun = allowed(size), time.monotonic()
            try:
                item, error = arrived.get(timeout=max(seconds - waited, 0))
            except queue.Empty:
                raise TooSlow(size, seconds) from None
            waited += time.monotonic() - begun
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            size += weight(item)
            yield item
    finally:
        unwanted.set()
