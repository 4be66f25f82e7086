"""Files and folders that are whole or not there: made beside their place, on the disk, then named.

A kill, a full disk or a power cut leaves what was in the place before.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from poa_ds.system.errors import UsageError, UserError

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF)  # file systems without


def replace_text(path: Path, text: str) -> None:
    """Put the text in the place of what is there; on the disk when this returns."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Put the content in the place of what is there; on the disk when this returns."""
    _sweep(path)
    file = _own_file(path)
    try:
        file.write(content)
        publish(file, path)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise
    finally:
        file.close()


def check_out(option: str, path: Path) -> None:
    """UsageError where no file can stand there: asked before the work that it will hold."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path} is no ordinary file, and would be replaced by one")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: nothing may be written in {path.parent}")


def write_out(option: str, path: Path, text: str) -> None:
    """Put the text there; UserError names the option where it fails."""
    try:
        replace_text(path, text)
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from error


def _own_file(path: Path) -> IO[bytes]:
    """A new file beside it that nobody can have named, locked as long as it is open."""
    while True:
        file = open(path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial"), "xb")
        if _locked(file.fileno()) and os.path.exists(file.name):  # else another has swept it
            return file
        file.close()


def _sweep(path: Path) -> None:
    """Remove what killed processes have left beside it: what a living one fills is locked."""
    left = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.partial")
    for name in filter(left.fullmatch, os.listdir(path.parent)):
        with suppress(OSError):  # it is at work, it has just ended, or no lock tells here
            handle = os.open(path.with_name(name), os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.with_name(name).unlink()
            finally:
                os.close(handle)


def publish(file: IO[bytes], path: Path) -> None:
    """Give a complete file of the same folder its name, on the disk before it is seen."""
    file.flush()
    os.fsync(file.fileno())
    give_name(Path(file.name), path)


def give_name(whole: Path, path: Path) -> None:
    """Give what is on the disk already its name, on the disk when this returns.

    A file takes the place of a file, a folder that of an empty folder or of none.
    """
    os.replace(whole, path)
    sync(path.parent)


def publish_folder(folder: Path, path: Path) -> None:
    """Give a complete folder its name, all of it on the disk before it is seen."""
    for inside in folder.rglob("*"):
        sync(inside)
    sync(folder)
    give_name(folder, path)


def sync(path: Path) -> None:
    """Bring a file's content, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill beside `folder`; it takes its place, synced to disk, when the block ends.

    A block that fails leaves what was there. What stood in the place before is deleted. UserError:
    another process is filling it.
    """
    folder = folder.absolute()
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = _own_folder(partial)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    if handle is None:
        raise UserError(f"{folder}: another process is writing there")
    try:
        yield partial
        for path in partial.iterdir():
            path.chmod(partial.stat().st_mode & 0o666)  # safetensors makes them private
            sync(path)
        sync(partial)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:  # a full disk, for one
        raise UserError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already when all went well
        os.close(handle)


def _own_folder(path: Path) -> int | None:
    """A new empty folder, open and locked; None where it is another process's.

    What a killed process has left there is removed.
    """
    path.mkdir(exist_ok=True)
    handle = os.open(path, os.O_RDONLY)
    # without the second, it has just become another's finished folder
    if _locked(handle) and path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
        for leftover in path.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return handle
    os.close(handle)
    return None


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
