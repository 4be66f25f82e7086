"""Paths as people write them: ~ and $VARIABLES are expanded, wherever no shell has done it."""

import argparse
import os
import re
from pathlib import Path

from poa_ds.system.errors import UsageError

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")
_COMMAND = re.compile(r"\$\(.*?\)|`.*?`")
_HOME = re.compile(r"^(sqlite:///)?(~[^/]*)")


def expanded(text: str) -> str:
    """The path or address with ~, ~name, $NAME and ${NAME} replaced; a shell reads `pipe:` itself.

    UsageError: there is no such variable or user, or a command stands in it, instead of a folder of
    that name.
    """
    if text.startswith("pipe:"):
        return text
    if command := _COMMAND.search(text):
        raise UsageError(f"{text}: {command[0]} is a command for a shell, and no shell reads this")
    names = [bare or braced for bare, braced in _VARIABLE.findall(text)]
    if unset := [name for name in names if not os.environ.get(name)]:
        raise UsageError(f"{text}: the variable {unset[0]} is not set")
    text = os.path.expandvars(text)
    found = _HOME.match(text)
    if not found:
        return text
    home = os.path.expanduser(found[2])
    if home == found[2]:
        raise UsageError(f"{text}: there is no user {home[1:]} (a folder of that name: ./{home})")
    return (found[1] or "") + home + text[found.end() :]


def place(text: str) -> str:
    """The same as the type of an argument: a path or an address. An empty one is a mistake.

    It is a shell's variable that is not set, and would mean the folder of the terminal.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no path (a variable that is not set?)")
    try:
        return expanded(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path(text: str) -> Path:
    """The same for a path alone."""
    found = place(text)
    if is_address(found):
        raise argparse.ArgumentTypeError(f"{found} is an address: a path of this machine is needed")
    return Path(found)


def is_address(text: str) -> bool:
    """Whether it is of the form scheme://..., which makes strange folders where it is a path."""
    return re.match(r"[A-Za-z][\w+.-]*:/", text) is not None
