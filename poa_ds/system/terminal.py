"""Lines that stay at the foot of a terminal, whatever else is printed to it.

The terminal itself keeps them: all that anybody prints, this program, a library of it, a loader's
process, another rank, scrolls in a region above them. Sequences are those of a VT100: ESC 7 and 8
keep and restore the cursor, `r` sets the region (and moves the cursor), K and J erase.
"""

import os
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TextIO

LEAST_ROWS_ABOVE, LEAST_COLUMNS = 4, 40  # else the terminal has no room for a foot
KEEP, RESTORE, WHOLE_REGION, ERASE_BELOW = "\x1b7", "\x1b8", "\x1b[r", "\x1b[J"
COLOUR = re.compile(r"\x1b\[\d+m")
_open: list["Foot"] = []  # of this process; the terminal outlives it


def draws(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether a foot can be drawn there: on a terminal that knows the sequences."""
    return stream.isatty() and environment.get("TERM", "dumb") not in ("", "dumb")


class Foot:
    """Some lines at the foot of a terminal.

    The size is asked for at each drawing: who stands in no foreground group hears no signal of it.
    """

    def __init__(self, stream: TextIO, *, height: int) -> None:
        self._stream, self._height = stream, height
        self._size: os.terminal_size | None = None  # for which the region is set

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, `height` of them, each cut where the terminal ends."""
        size = self.size()
        text = "" if size == self._size else self._leave()
        if not size or size.lines < self._height + LEAST_ROWS_ABOVE or size.columns < LEAST_COLUMNS:
            self._write(text)
            return
        if self._size is None:
            text += self._enter(size)
        first = size.lines - self._height + 1
        rows = "".join(
            f"\x1b[{first + i};1H\x1b[2K{fitting(line, size.columns - 1)}"
            for i, line in enumerate(lines)
        )
        self._write(f"{text}{KEEP}{rows}{RESTORE}")

    @property
    def is_shown(self) -> bool:
        return self._size is not None

    def size(self) -> os.terminal_size | None:
        """As it is now; None where the terminal is gone, which a run outlasts."""
        try:
            return os.get_terminal_size(self._stream.fileno())
        except OSError:
            return None

    def close(self) -> None:
        """Give the rows back; what is printed next stands under what was printed last."""
        self._write(self._leave())

    def _enter(self, size: os.terminal_size) -> str:
        """Make room under the cursor, which stays in its place of its line."""
        self._size = size
        _open.append(self)
        room = "\x1bD" * self._height + f"\x1b[{self._height}A"
        return f"{room}{KEEP}\x1b[1;{size.lines - self._height}r{RESTORE}"

    def _leave(self) -> str:
        """The foot is somewhere under the cursor, also where another size has moved both."""
        if self._size is None:
            return ""
        self._size = None
        _open.remove(self)
        return f"{KEEP}{WHOLE_REGION}{RESTORE}{ERASE_BELOW}"

    def _write(self, text: str) -> None:
        """In one piece: nothing of another process comes between the parts of a sequence."""
        if text:
            sys.stdout.flush()
            self._stream.flush()
            self._stream.write(text)
            self._stream.flush()


def close_all() -> None:
    """Before this process ends without its way through the contexts that are open."""
    for foot in list(_open):
        foot.close()


def restore(stream: TextIO, environment: Mapping[str, str]) -> None:
    """Behind a process that may have been killed with its foot on the terminal."""
    if draws(stream, environment):
        stream.write(f"{KEEP}{WHOLE_REGION}{RESTORE}{ERASE_BELOW}")
        stream.flush()


def width(text: str) -> int:
    """Columns that a terminal needs for it, colours not counted."""
    shown = COLOUR.sub("", text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in shown)
    return len(shown) + wide - sum(map(bool, map(unicodedata.combining, shown)))


def fitting(text: str, columns: int) -> str:
    """The text, cut where it is wider; then without colours."""
    if width(text) <= columns:
        return text
    text = COLOUR.sub("", text)
    while width(text) > columns:
        text = text[:-1]
    return text
