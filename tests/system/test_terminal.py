"""Lines at the foot of a real pseudo-terminal, as an emulator of a VT100 shows them."""

import os
import subprocess

import pytest

from poa_ds.system import terminal as terminals
from poa_ds.system.terminal import Foot, fitting, width
from tests.support.pseudo_terminal import terminal

FOUR = ["first", "second", "third", "fourth"]


def test_whatever_is_printed_scrolls_above_the_foot_and_nothing_of_it_is_lost() -> None:
    with terminal(12, 60) as there:
        print("$ a command", file=there.stream)
        foot = Foot(there.stream, height=4)
        for number in range(20):
            foot.draw([f"{line} {number} {'x' * 100}" for line in FOUR])
            print(f"printed {number}", file=there.stream, flush=True)
            if number % 5 == 0:  # another program, which knows nothing of the foot
                subprocess.run(["echo", f"from outside {number}"], stdout=there.stream, check=True)
        shown = there.see()
        assert [line[:8] for line in shown[-4:]] == [f"{line} 19 "[:8] for line in FOUR]
        assert max(map(len, shown)) == 59 and not there.emulator.wrapped
        wanted = ["$ a command"]
        for number in range(20):
            wanted += [f"printed {number}"]
            wanted += [f"from outside {number}"] if number % 5 == 0 else []
        assert [line for line in there.emulator.everything()[:-4] if line] == wanted
        foot.close()
        print("after", file=there.stream, flush=True)
        there.see()
        assert [line for line in there.emulator.everything() if line] == [*wanted, "after"]


def test_an_unfinished_line_goes_on_behind_a_drawing() -> None:
    with terminal(10, 60) as there:
        foot = Foot(there.stream, height=4)
        print("half ", end="", file=there.stream)
        foot.draw(FOUR)
        print("and half", file=there.stream, flush=True)
        shown = there.see()
        assert shown[0] == "half and half" and shown[-4:] == FOUR


@pytest.mark.parametrize(("rows", "columns"), [(20, 60), (12, 90), (11, 45), (9, 100)])
def test_a_terminal_of_another_size_has_one_foot_again(rows: int, columns: int) -> None:
    with terminal(14, 60) as there:
        foot = Foot(there.stream, height=4)
        foot.draw(FOUR)
        print("before", file=there.stream, flush=True)
        there.resize(rows, columns)
        foot.draw(FOUR)
        shown = there.see()
        assert shown[-4:] == FOUR and shown[0] == "before"
        assert [line for line in there.emulator.everything() if line] == ["before", *FOUR]


def test_a_terminal_without_room_has_no_foot_and_gets_it_when_it_grows() -> None:
    with terminal(7, 60) as there:
        foot = Foot(there.stream, height=4)
        foot.draw(FOUR)
        assert not foot.is_shown and not any(there.see())
        there.resize(14, 60)
        foot.draw(FOUR)
        assert foot.is_shown and there.see()[-4:] == FOUR
        there.resize(14, 39)
        foot.draw(FOUR)
        assert not foot.is_shown and not any(there.see())


def test_a_program_that_ends_at_once_gives_the_terminal_back() -> None:
    with terminal(12, 60) as there:
        foot = Foot(there.stream, height=4)
        foot.draw(FOUR)
        terminals.close_all()
        assert not any(there.see()) and there.emulator.bottom == 11
        foot.draw(FOUR)
        there.see()
        terminals.restore(there.stream, {"TERM": "xterm"})  # as its parent does after SIGKILL
        assert not any(there.see()) and there.emulator.bottom == 11
        foot.close()


def test_no_foot_where_there_is_no_terminal_or_a_dumb_one(tmp_path) -> None:
    with open(tmp_path / "log", "w") as file:
        assert not terminals.draws(file, {"TERM": "xterm"})
        terminals.restore(file, {"TERM": "xterm"})
    assert (tmp_path / "log").read_text() == ""
    with terminal(12, 60) as there:
        assert terminals.draws(there.stream, {"TERM": "xterm"})
        assert not terminals.draws(there.stream, {"TERM": "dumb"})
        assert not terminals.draws(there.stream, {})


def test_letters_of_two_columns_and_colours_count_as_the_terminal_does() -> None:
    assert width("\x1b[31mab\x1b[0m") == 2 and width("実験") == 4 and width("e\u0301") == 1
    assert fitting("実験x", 3) == "実" and fitting("\x1b[31mabc\x1b[0m", 2) == "ab"


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    with terminal(12, 60) as there, open("/dev/null", "w") as nothing:
        foot = Foot(there.stream, height=4)
        foot.draw(FOUR)
        os.dup2(nothing.fileno(), there.stream.fileno())  # what stopping.py does then
        foot.draw(FOUR)
        assert not foot.is_shown
        foot.close()
