"""A terminal that does what is written to it: enough of a VT100 to see what a user would."""

import re

TOKEN = re.compile(r"\x1b\[([\d;]*)([A-Za-z])|\x1b([78D])|([\r\n])|([^\x1b\r\n])")


class Emulator:
    """rows x columns letters; `scrolled` has the lines that left at the top of the whole screen."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.cells = [[" "] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.kept = (0, 0)
        self.top, self.bottom = 0, rows - 1  # of the region
        self.scrolled: list[str] = []
        self.wrapped = 0  # letters that went on in another line

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            found = TOKEN.match(text, position)
            assert found, f"unknown: {text[position : position + 12]!r}"
            position = found.end()
            numbers, command, plain, control, letter = found.groups()
            if command:
                self._command(command, [int(n or 0) for n in numbers.split(";")])
            elif plain:
                self._plain(plain)
            elif control == "\n":
                self._down()
            elif control:
                self.column = 0
            else:
                self._put(letter)

    def shown(self) -> list[str]:
        return ["".join(line).rstrip() for line in self.cells]

    def everything(self) -> list[str]:
        return self.scrolled + self.shown()

    def resize(self, rows: int, columns: int) -> None:
        """The text stays at the top where the screen grows, and leaves there where it shrinks."""
        while len(self.cells) > rows:
            if self.row < len(self.cells) - 1:
                self.cells.pop()
            else:
                self.scrolled.append("".join(self.cells.pop(0)).rstrip())
                self.row -= 1
        self.cells += [[" "] * columns for _ in range(rows - len(self.cells))]
        self.cells = [(line + [" "] * columns)[:columns] for line in self.cells]
        self.rows, self.columns, self.top, self.bottom = rows, columns, 0, rows - 1

    def _put(self, letter: str) -> None:
        if self.column == self.columns:
            self.column, self.wrapped = 0, self.wrapped + 1
            self._down()
        self.cells[self.row][self.column] = letter
        self.column += 1

    def _down(self) -> None:
        if self.row != self.bottom:
            self.row = min(self.row + 1, self.rows - 1)
            return
        gone = self.cells.pop(self.top)
        if self.top == 0:
            self.scrolled.append("".join(gone).rstrip())
        self.cells.insert(self.bottom, [" "] * self.columns)

    def _plain(self, letter: str) -> None:
        if letter == "7":
            self.kept = (self.row, self.column)
        elif letter == "8":
            self.row, self.column = self.kept
        else:
            self._down()

    def _command(self, command: str, numbers: list[int]) -> None:
        first = max(numbers[0], 1)
        if command == "A":
            self.row = max(self.row - first, 0)
        elif command == "H":
            self.row, self.column = first - 1, max(numbers[-1], 1) - 1
        elif command == "K":
            assert numbers == [2]
            self.cells[self.row] = [" "] * self.columns
        elif command == "J":
            assert numbers == [0]
            self.cells[self.row][self.column :] = [" "] * (self.columns - self.column)
            for line in self.cells[self.row + 1 :]:
                line[:] = [" "] * self.columns
        elif command == "r":
            self.top, self.bottom = (
                (first - 1, numbers[1] - 1) if numbers[1:] else (0, self.rows - 1)
            )
            self.row = self.column = 0
        else:
            assert command == "m", f"unknown: {command}"
