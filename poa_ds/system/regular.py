"""Files that end when they are read: pipes and devices in their places are never opened."""

import stat
from pathlib import Path

from poa_ds.system.errors import UserError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path) -> None:
    """UserError for a pipe or a device: reading it could wait for ever, or never end.

    What is absent is left to the reader.
    """
    try:
        kind = KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except OSError:
        return
    if kind is not None:
        raise UserError(f"{path} is {kind}, not a regular file")
