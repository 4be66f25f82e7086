"""A progress bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

LINE_SECONDS = 5.0
Item = TypeVar("Item")


def progress(items: Iterable[Item], *, total: int, label: str, unit: str) -> Iterator[Item]:
    """The items, with their count shown on stderr."""
    terminal = sys.stderr.isatty()
    started = said = time.monotonic()
    with tqdm(total=total, desc=label, unit=unit, disable=not terminal, leave=False) as bar:
        for done, item in enumerate(items, start=1):
            yield item
            bar.update()
            now = time.monotonic()
            if not terminal and now - said >= LINE_SECONDS:
                said = now
                speed = done / (now - started)
                print(f"{label}: {done} of {total} {unit}, {speed:.0f} per second", file=sys.stderr)
