"""Lines for people, each in one piece and at once; text from outside is shown escaped."""

import sys

from poa_ds.system.printable import printable_lines


def tell(text: str) -> None:
    """Print to standard output: what a program does and finds."""
    print(printable_lines(text), flush=True)


def say(text: str) -> None:
    """Print to standard error, where other ranks write too: warnings, mistakes, progress."""
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stderr.write(printable_lines(text.rstrip("\n")) + "\n")
    sys.stderr.flush()
