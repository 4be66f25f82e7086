"""Numbers on command lines: what is refused is named."""

import argparse

import pytest

from poa_ds.system.arguments import count, positive


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
