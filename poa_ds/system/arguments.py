"""Numbers on command lines: types for argparse that say what is allowed."""

import argparse
import math
import re
from pathlib import Path

from poa_ds.system import paths

UNITS = {"ms": 1.0, "s": 1e3}
LAST_PORT = (1 << 16) - 1
SUFFIXES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


def whole(text: str) -> int:
    """A whole number from 0 on."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, by commas, none of them twice."""
    found = tuple(count(part.strip()) for part in text.split(","))
    if twice := [number for number in found if found.count(number) > 1]:
        raise argparse.ArgumentTypeError(f"{text!r} has {twice[0]} twice")
    return found


def port(text: str) -> int:
    """A port that a program may ask for."""
    found = count(text)
    if found > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to {LAST_PORT}")
    return found


def named(text: str) -> str:
    """What is not empty: a shell's variable that is not set would ask for what nobody meant."""
    if not text.strip(", "):
        raise argparse.ArgumentTypeError(f"{text!r} names nothing (a variable that is not set?)")
    return text


def sides(text: str) -> tuple[int, int]:
    """(rows, columns) of ROWSxCOLUMNS, or of one number for both."""
    rows, _, columns = text.partition("x")
    return count(rows), count(columns) if "x" in text else count(rows)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def quantity(text: str) -> float:
    """A number with an optional K, M or G (or B) behind it: 25M is 25 million."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGB]?)", text.strip().upper())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 such as 25M or 800K")
    return float(match[1]) * SUFFIXES[match[2]]


def milliseconds(text: str) -> float:
    """A time with its unit: 20ms, 0.02s."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text.strip().lower())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 such as 20ms or 0.02s")
    return float(match[1]) * UNITS[match[2]]


def share(text: str) -> float:
    """A share such as 10%."""
    try:
        found = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        found = 0.0
    if not text.strip().endswith("%") or not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0% up to 100%")
    return found


def share_or_file(text: str) -> float | Path:
    """A share such as 10%, or a file that is there."""
    path = paths.path(text)
    return path if path.is_file() else share(text)


def rates(text: str) -> tuple[float, ...]:
    """Positive numbers such as 0.01,0.1, in rising order."""
    return tuple(sorted({positive(part) for part in text.split(",")}))
