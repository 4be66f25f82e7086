"""Lines for people, each in one piece and at once.

Text from outside is shown escaped, and no address with its password.
"""

import sys

from poa_ds.system.addresses import without_passwords
from poa_ds.system.printable import printable_lines


def tell(text: str) -> None:
    """Print to standard output: what a program does and finds."""
    print(printable_lines(without_passwords(text)), flush=True)


def say(text: str) -> None:
    """Print to standard error, where other ranks write too: warnings, mistakes, progress."""
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stderr.write(printable_lines(without_passwords(text.rstrip("\n"))) + "\n")
    sys.stderr.flush()
