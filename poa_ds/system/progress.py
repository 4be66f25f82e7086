"""A progress bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from poa_ds.system.console import say
from poa_ds.system.printable import printable

LINE_SECONDS = 5.0
LOG_SECONDS = 30.0  # between two lines of what a training does beside its steps
Item = TypeVar("Item")


def progress(
    items: Iterable[Item],
    *,
    total: int,
    label: str,
    unit: str,
    first: int = 0,
    every: float = LINE_SECONDS,
) -> Iterator[Item]:
    """The items, with count, rate and time left on stderr; `first` were done before.

    every: seconds between two lines where stderr is no terminal.
    """
    label, terminal = printable(label), sys.stderr.isatty()
    started = said = time.monotonic()
    with tqdm(
        total=total, initial=first, desc=label, unit=unit, disable=not terminal, leave=False
    ) as bar:
        for done, item in enumerate(items, start=1):
            yield item
            bar.update()
            now = time.monotonic()
            if not terminal and now - said >= every:
                said = now
                speed = done / (now - started)
                left = (total - first - done) / speed
                say(
                    f"{label}: {first + done} of {total} {unit}, {speed:.3g} per second, "
                    f"{left:.0f} s left"
                )
