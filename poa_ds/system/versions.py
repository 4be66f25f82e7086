"""Which code made a file: versions of the packages, and the commit where it ran from a checkout."""

import subprocess
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("poa_ds", "torch", "deepspeed")


def versions() -> dict[str, str]:
    """Package -> version, "" where it is not installed as one; `commit`: "" outside a checkout."""
    return {name: _version(name) for name in PACKAGES} | {"commit": _commit()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit, with `-dirty` behind it when files that it knows were changed."""
    if not (CHECKOUT / ".git").exists():  # nor is a repository around site-packages ours
        return ""
    words = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run([*words, "--exclude=*"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # no git here: the versions must do
        return ""
    return done.stdout.strip()
