"""Mistakes of the user: shown as one message without a traceback."""


class UserError(Exception):
    """Something the user can mend: the message names file or key, value and what is allowed."""

    exit_status = 1


class UsageError(UserError):
    """The command or the recipe itself is wrong; nothing was started."""

    exit_status = 2
