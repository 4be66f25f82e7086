"""A pseudo-terminal of a given size: what is written to its stream, and what its user sees."""

import os
import pty
import select
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

import pytest

from poa_ds.system.terminal import close_all
from tests.support.emulator import Emulator


@dataclass
class Terminal:
    """stream: the program's end; emulator: the user's, after `see`."""

    stream: TextIO
    screen: int
    emulator: Emulator

    def see(self) -> list[str]:
        """The lines that are on the screen by now."""
        while select.select([self.screen], [], [], 0.05)[0]:
            try:
                self.emulator.feed(os.read(self.screen, 65536).decode())
            except OSError:  # Linux: the last program has closed it
                break
        return self.emulator.shown()

    def resize(self, rows: int, columns: int) -> None:
        self.see()
        termios.tcsetwinsize(self.screen, (rows, columns))
        self.emulator.resize(rows, columns)


@contextmanager
def terminal(rows: int, columns: int) -> Iterator[Terminal]:
    try:
        screen, own = pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminals here: {error}")
    termios.tcsetwinsize(own, (rows, columns))
    with open(own, "w", encoding="utf-8") as stream:
        yield Terminal(stream, screen, Emulator(rows, columns))
        close_all()
    os.close(screen)
