"""Copies of remote shards on this node: each is fetched once, checked, and only then seen.

http(s) by the standard library, every other address (s3://, gs://, ...) by fsspec, where that is
installed. Several processes may ask for the same file: a lock lets one of them fetch it.
"""

import fcntl
import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from poa_ds.errors import UserError

ATTEMPTS = 5
TIMEOUT_SECONDS = 60.0
CHUNK = 1 << 20


class FetchError(UserError):
    """A remote file cannot be had; it is never replaced by another one, as an image may be."""


@dataclass(frozen=True)
class Wanted:
    """A remote file; what is known of it is compared, None is not."""

    address: str
    size: int | None = None
    sha256: str | None = None


@contextmanager
def opened(address: str) -> Iterator[BinaryIO]:
    """The remote file, for reading."""
    if address.startswith(("http://", "https://")):
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


def fetch(wanted: Wanted, path: Path, *, wait_seconds: float = 1.0) -> bool:
    """Leaves the file at `path`; whether this process fetched it. FetchError names the cause.

    Faults of the network are retried, after waits that double.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock")):
        if path.exists():
            return False
        causes = []
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(wait_seconds * 2 ** (attempt - 1))
            cause = _try(wanted, path)
            if cause is None:
                return True
            causes.append(cause)
        other = sorted(set(causes[:-1]) - {causes[-1]})
        before = f" (before: {'; '.join(other)})" if other else ""
        raise FetchError(f"{wanted.address}: {ATTEMPTS} attempts failed: {causes[-1]}{before}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # a process forked meanwhile has the same open file: closing ours would not release it
            fcntl.flock(lock, fcntl.LOCK_UN)


def _try(wanted: Wanted, path: Path) -> str | None:
    """None when the file is there, else why not."""
    partial, digest, size = path.with_name(f"{path.name}.partial"), hashlib.sha256(), 0
    try:
        with opened(wanted.address) as source, open(partial, "wb") as target:
            # read() of a cut http body ends without an error
            announced = getattr(source, "length", None) or getattr(source, "size", None)
            while chunk := source.read(CHUNK):
                size += len(chunk)
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
    except urllib.error.HTTPError as error:
        return f"the server answered {error.code} {error.reason}"
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return f"the connection failed after {size} bytes: {type(error).__name__}: {reason}"
    if announced is not None and size < announced:
        return f"the connection was cut after {size} of {announced} bytes"
    if wanted.size is not None and size != wanted.size:
        return f"{size} bytes came instead of {wanted.size}"
    if wanted.sha256 is not None and digest.hexdigest() != wanted.sha256:
        return "wrong content: its sha256 is not the one in dataset.json"
    os.replace(partial, path)
    return None
