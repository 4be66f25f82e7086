"""Text from outside reaches the terminal escaped."""

import pickle

import pytest

from poa_ds.data.store.index import SampleError
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.printable import duration, figure, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 画像.jpg", "plain ü 画像.jpg"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\nb\r\tc\0", r"a\nb\r\tc\x00"),
        ("\x9b31m", r"\x9b31m"),  # the same code in one byte
        ("gpj.\u202eexe", r"gpj.\u202eexe"),  # turns the reading direction
        (b"\xff.jpg".decode("utf-8", "surrogateescape"), r"\udcff.jpg"),  # print() would fail
        ("back\\slash", "back\\slash"),
    ],
)
def test_what_a_terminal_would_not_simply_show_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown and shown.isprintable()


def test_lines_stay_lines() -> None:
    assert printable_lines("two\nlines\x07") == "two\nlines\\x07"


@pytest.mark.parametrize("kind", [UserError, UsageError])
def test_every_mistake_is_shown_escaped(kind: type[UserError]) -> None:
    error = kind("server says \x1b]0;title\x07\nand more")
    assert str(error) == "server says \\x1b]0;title\\x07\nand more"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_key_cannot_make_lines_of_its_own() -> None:
    error = SampleError("x.tar", "k\nall is well", "damaged")
    assert str(error) == r"x.tar, sample k\nall is well: damaged"
    assert error.key == "k\nall is well"


def test_figures_have_three_digits_and_no_exponent() -> None:
    values = (0.0312, 0.5, 4.068, 31.24, 99.96, 1240.4)
    assert [figure(x) for x in values] == ["0.0312", "0.5", "4.07", "31.2", "100", "1,240"]


def test_durations_have_the_unit_that_a_reader_would_take() -> None:
    values = (0.4, 59, 61, 12 * 60 + 20, 59.6 * 60, 3 * 3600 + 20 * 60)
    assert [duration(x) for x in values] == [
        "0 s",
        "59 s",
        "1 min",
        "12 min",
        "1 h 0 min",
        "3 h 20 min",
    ]
