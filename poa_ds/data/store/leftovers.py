"""What file managers and copying programs leave among files: no image, no shard, no class."""

from pathlib import PurePath

NAMES = frozenset(
    ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
)


def leftover(name: str | PurePath) -> bool:
    """Whether a path was left by a program: ._x, .DS_Store and other hidden names, __MACOSX/x."""
    parts = str(name).split("/")
    return parts[-1].startswith(".") or not NAMES.isdisjoint(parts)
