"""Numbers on command lines: what is refused is named."""

import argparse

import pytest

from poa_ds.system.arguments import count, milliseconds, positive, quantity, share


def test_numbers_are_read() -> None:
    assert (count("12"), positive("2.5"), positive("1e3")) == (12, 2.5, 1000.0)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "many", "²", "٣"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number from 1 on"):
        count(text)


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "", "fast"])
def test_what_is_not_positive_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number above 0"):
        positive(text)


def test_large_numbers_have_suffixes() -> None:
    assert quantity("25M") == 25e6 and quantity("0.3b") == 3e8
    assert quantity("800k") == 8e5 and quantity("5") == 5


@pytest.mark.parametrize(("text", "wanted"), [("20ms", 20.0), ("0.02s", 20.0), ("1.5MS", 1.5)])
def test_times_have_units(text: str, wanted: float) -> None:
    assert milliseconds(text) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["20", "0ms", "fast", "-1s", "1 h"])
def test_a_time_without_unit_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="20ms"):
        milliseconds(text)


def test_shares_are_percent() -> None:
    assert share("10%") == 0.1 and share(" 100 %") == 1
    for text in ("10", "0%", "101%", "nan%", "few%", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a share"):
            share(text)
