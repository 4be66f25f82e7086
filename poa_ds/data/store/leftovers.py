"""What file managers and copying programs leave among files: no image, no shard, no class."""

import stat
from pathlib import Path, PurePath

from poa_ds.system.errors import UserError

NAMES = frozenset(
    ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
)
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def leftover(name: str | PurePath) -> bool:
    """Whether a path was left by a program: ._x, .DS_Store and other hidden names, __MACOSX/x."""
    parts = str(name).split("/")
    return parts[-1].startswith(".") or not NAMES.isdisjoint(parts)


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
