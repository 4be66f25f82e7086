"""Mistakes of the user: shown as one message without a traceback."""

from poa_ds.system.addresses import without_passwords
from poa_ds.system.printable import printable_lines


class UserError(Exception):
    """Something the user can mend: the message names file or key, value and what is allowed.

    What a terminal would not simply show is escaped: names and answers come from outside. Addresses
    lose their passwords.
    """

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable_lines(without_passwords(message)))


class UsageError(UserError):
    """The command or the recipe itself is wrong; nothing was started."""

    exit_status = 2
