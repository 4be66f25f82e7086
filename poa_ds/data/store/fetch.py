"""Copies of remote shards on this node: each is fetched once, checked, and only then seen.

http(s) by the standard library, every other address (s3://, gs://, ...) by fsspec, where that is
installed. Several processes may ask for the same file: a lock lets one of them fetch it.
"""

import fcntl
import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, TypeVar

from poa_ds.data.store.patience import TooSlow, timed
from poa_ds.system.errors import UserError
from poa_ds.system.files import publish
from poa_ds.system.printable import printable

ATTEMPTS = 5
TIMEOUT_SECONDS = 60.0  # in which something must come
SLOWEST = 20_000  # bytes per second that a transfer must have, from PATIENCE on
PATIENCE = 1.5  # of TIMEOUT_SECONDS: before it ends what still sends something
CHUNK = 1 << 20
LONGEST_NUMBER = 16  # digits of a size
Item = TypeVar("Item")
NO_HEAD = (403, 405, 501)  # what servers answer that only know GET


class FetchError(UserError):
    """A remote file cannot be had; it is never replaced by another one, as an image may be."""


class _Fault(Exception):
    """The network or the other side failed; the next attempt may not."""


@dataclass(frozen=True)
class Wanted:
    """A remote file; what is known of it is compared, None is not.

    most: bytes that are taken, where the size is not known. accept: raises UserError where the
    content is not what it should be.
    """

    address: str
    most: int
    size: int | None = None
    sha256: str | None = None
    accept: Callable[[bytes], object] | None = None


def is_http(address: str) -> bool:
    return address.startswith(("http://", "https://"))


@contextmanager
def opened(address: str) -> Iterator[BinaryIO]:
    """The remote file, for reading."""
    if is_http(address):
        with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as file:
            yield file
        return
    try:
        import fsspec
    except ImportError:
        raise UserError(f"{address}: addresses like this need fsspec: pip install fsspec") from None
    try:
        file = fsspec.open(address, "rb").open()
    except (ImportError, ValueError) as error:  # no library for this protocol
        raise UserError(f"{address}: {error}") from error
    with file:
        yield file


def size_of(address: str) -> int | None:
    """The bytes of a remote file as its server announces them, without its body; None: unsaid."""
    if not is_http(address):
        with opened(address) as file:
            return getattr(file, "size", None)
    try:
        request = urllib.request.Request(address, method="HEAD")
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code not in NO_HEAD:
            raise
        answer = urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS)
    with answer:
        length = answer.headers.get("Content-Length")
    if length is None:
        return None
    if not (length.isascii() and length.isdigit() and len(length) < LONGEST_NUMBER):
        raise _Fault(f"the server announces a length of {printable(length)!r}")
    return int(length)


class Incoming:
    """A remote file that is read once, from front to back, as it comes; FetchError says why not."""

    def __init__(self, address: str) -> None:
        self._address, self._chunks, self._part = address, _chunks(address), b""

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end alone."""
        try:
            self._part = self._part or next(self._chunks, b"")
        except _Fault as fault:
            raise FetchError(f"{self._address}: {fault}") from fault
        part, self._part = self._part[:size], self._part[size:]
        return part


def confirm(wanted: Wanted, *, wait_seconds: float = 1.0) -> None:
    """FetchError unless the file is there, as large as it should be; its body is not read."""

    def attempt() -> None:
        size = next(_in_time(_sizes(wanted.address), lambda _: 0))
        if None not in (size, wanted.size) and size != wanted.size:
            raise _Fault(f"{size} bytes are there instead of {wanted.size}")

    _retried(wanted.address, attempt, wait_seconds)


def fetch(wanted: Wanted, path: Path, *, wait_seconds: float = 1.0, join: bool = True) -> bool:
    """Leaves the file at `path`; whether this process fetched it. FetchError names the cause.

    Faults of the network are retried, after waits that double. While another process fetches the
    same file this one waits for it; with `join` False it returns at once.
    """
    with _disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock"), wait=join) as held:
        if not held or path.exists():
            return False
        _retried(wanted.address, lambda: _copy(wanted, path), wait_seconds)
        return True


def _retried(address: str, attempt: Callable[[], None], wait_seconds: float) -> None:
    causes = []
    for number in range(ATTEMPTS):
        if number:
            time.sleep(wait_seconds * 2 ** (number - 1))
        try:
            return attempt()
        except _Fault as fault:
            causes.append(str(fault))
    other = sorted(set(causes[:-1]) - {causes[-1]})
    before = f" (before: {'; '.join(other)})" if other else ""
    raise FetchError(f"{address}: {ATTEMPTS} attempts failed: {causes[-1]}{before}")


def _copy(wanted: Wanted, path: Path) -> None:
    """One attempt: the file is there, or a fault says why not."""
    partial, digest, size = path.with_name(f"{path.name}.partial"), hashlib.sha256(), 0
    with _disk(partial), open(partial, "wb") as target:
        for chunk in _chunks(wanted.address):
            size += len(chunk)
            digest.update(chunk)
            target.write(chunk)
            if size > (wanted.most if wanted.size is None else wanted.size):
                break  # a body without end would fill the disk
    if wanted.size is not None and size != wanted.size:
        raise _Fault(f"{size} bytes came instead of {wanted.size}")
    if size > wanted.most:
        raise _Fault(f"more than {wanted.most} bytes came")
    if wanted.sha256 is not None and digest.hexdigest() != wanted.sha256:
        raise _Fault("wrong content: its sha256 is not the one in dataset.json")
    if wanted.accept is not None:
        try:
            wanted.accept(partial.read_bytes())
        except UserError as error:
            raise _Fault(f"wrong content: {error}") from error
    with _disk(path), open(partial, "rb") as whole:
        publish(whole, path)


def _chunks(address: str) -> Iterator[bytes]:
    """The content, piece by piece."""
    return _in_time(_pieces(address), len)


def _in_time(items: Iterator[Item], weight: Callable[[Item], int]) -> Iterator[Item]:
    """What a request gives; a fault where it comes too slowly. weight: of an item in bytes."""
    try:
        yield from timed(
            items, lambda size: PATIENCE * TIMEOUT_SECONDS + size / SLOWEST, weight=weight
        )
    except TooSlow as slow:
        raise _Fault(f"too slow: {slow.size} bytes in {slow.seconds:.0f} seconds") from None


def _sizes(address: str) -> Iterator[int | None]:
    with _network(address):
        yield size_of(address)


def _pieces(address: str) -> Iterator[bytes]:
    size = 0
    with _network(address), opened(address) as source:
        # read() of a cut http body ends without an error
        announced = getattr(source, "length", None) or getattr(source, "size", None)
        read = getattr(source, "read1", source.read)  # what is there, not all that was asked for
        while chunk := read(CHUNK):
            size += len(chunk)
            yield chunk
    if announced is not None and size < announced:
        raise _Fault(f"the connection was cut after {size} of {announced} bytes")


@contextmanager
def _network(address: str) -> Iterator[None]:
    """Faults of the network as such; the libraries behind fsspec have exceptions of their own."""
    kinds = (OSError, HTTPException) if is_http(address) else Exception
    try:
        yield
    except UserError:
        raise
    except urllib.error.HTTPError as error:
        raise _Fault(f"the server answered {error.code} {error.reason}") from error
    except kinds as error:
        reason = getattr(error, "reason", None) or error
        raise _Fault(f"the connection failed: {type(error).__name__}: {reason}") from error


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    """A full disk or a missing right is no fault of the network."""
    try:
        yield
    except OSError as error:
        raise UserError(f"data.cache: {place} cannot be written: {error.strerror}") from error


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock; with `wait` it always has."""
    with _disk(path):
        lock = open(path, "wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            # a process forked meanwhile has the same open file: closing ours would not release it
            fcntl.flock(lock, fcntl.LOCK_UN)
