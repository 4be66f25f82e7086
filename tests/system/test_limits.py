"""Errors as the system and PyTorch word them, and the limit that each tells of."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from poa_ds.system import limits


def of(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "limit", "remedy"),
    [
        (of(errno.EMFILE), "open files", "ulimit -n"),
        (
            RuntimeError(
                "unable to open shared memory object </torch_1>: Too many open files (24)"
            ),
            "open files",
            "ulimit -n",
        ),
        (RuntimeError("received 0 items of ancdata"), "open files", "fewer data.workers"),
        (
            ImportError("libx.so: cannot open shared object file: Error 24: Too many open files"),
            "open files",
            "ulimit -n",
        ),
        (of(errno.ENFILE), "the machine", "fs.file-max"),
        (of(errno.EAGAIN), "processes or threads", "fewer data.workers"),
        (RuntimeError("can't start new thread"), "processes or threads", "fewer data.workers"),
        (of(errno.ENOMEM), "memory is used up", "smaller batches"),
        (MemoryError(), "memory is used up", "smaller batches"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."),
            "/dev/shm",
            "--shm-size",
        ),
        (
            RuntimeError("unable to allocate shared memory(shm): No space left on device (28)"),
            "/dev/shm",
            "--shm-size",
        ),
    ],
)
def test_the_limit_and_the_remedy_are_named(error: Exception, limit: str, remedy: str) -> None:
    outer = RuntimeError("something else")
    outer.__cause__ = error
    for found in (limits.explained(error), limits.explained(outer)):
        assert limit in found and remedy in found
    assert not limits.killed(error)


@pytest.mark.parametrize(
    "error", [ValueError("24"), of(errno.ENOENT), of(errno.EPIPE), KeyError(11)]
)
def test_other_errors_tell_of_none(error: Exception) -> None:
    assert limits.explained(error) == "" and limits.killed(error) == ""


def test_a_loader_that_was_killed_points_to_the_memory() -> None:
    """Another try may find more of it: so it is no mistake, and `poa-ds launch` tries again."""
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert "memory" in limits.killed(error) and limits.explained(error) == ""


def test_a_low_limit_of_the_shell_is_raised_as_far_as_allowed() -> None:
    code = (
        "import resource as r; from poa_ds.system import limits;"
        "r.setrlimit(r.RLIMIT_NOFILE, (50, 90)); limits.raise_open_files();"
        "print(r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(90, 90)\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] != 50
