"""Limits of the system that a program has met: which one it was, and what helps."""

import errno
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

MOST_FILES = 1 << 16
OF_A_FILE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)
FILES = re.compile(r"Too many open files|items of ancdata|Errno 24\b")
PROCESSES = re.compile(r"can't start new thread|unable to start .*thread", re.IGNORECASE)
SHARED = re.compile(r"bus error|/dev/shm|shared memory object|\(shm\)", re.IGNORECASE)
MEMORY = re.compile(r"[Cc]annot allocate memory|can't allocate memory")
OUT_OF_MEMORY = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
KILLED = re.compile(r"killed by signal: Killed")


def raise_open_files() -> None:
    """As many as the administrator allows: shells start with 1024, or fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def explained(error: BaseException) -> str:
    """What limit the error, or one behind it, tells of, and the remedy; empty where none.

    Of the error itself also: a file or folder that may not be read or written.
    """
    if isinstance(error, OSError) and error.errno in OF_A_FILE and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return next(filter(None, map(_explained, _chain(error))), "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _explained(error: BaseException) -> str:
    number, text = getattr(error, "errno", None), str(error)
    if number == errno.ENFILE:
        return "the machine has no room for more open files (sysctl fs.file-max)"
    if number == errno.EMFILE or FILES.search(text):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        more = f"`ulimit -n {hard}`" if hard > soft else "let an administrator raise the limit"
        return f"{soft} open files are not enough (ulimit -n): {more}, or use fewer data.workers"
    if isinstance(error, BlockingIOError) or PROCESSES.search(text):
        soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
        where = "by the container" if soft == resource.RLIM_INFINITY else f"ulimit -u is {soft}"
        return f"no more processes or threads are allowed ({where}): use fewer data.workers"
    if SHARED.search(text):
        more = "give it more (docker run --shm-size=8g), or use fewer data.workers"
        return f"the shared memory /dev/shm is full: {more}"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or MEMORY.search(text):
        return "the memory is used up: use fewer data.workers, or smaller batches"
    return ""


def memory_kills() -> int:
    """How many processes of this machine the system has killed for memory; 0 where it is silent."""
    try:
        found = OUT_OF_MEMORY.search(Path("/proc/vmstat").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def memory_killed(before: int) -> str:
    """What to say where there are more than `before`; empty where there are not."""
    if memory_kills() <= before:
        return ""
    return (
        "meanwhile the system has killed a process of this machine because the memory was used up "
        "(a limit of the job or container counts, too): use fewer data.workers, or smaller batches"
    )


def killed(error: BaseException) -> str:
    """What a loader process that was killed points to; empty for other errors."""
    found = any(KILLED.search(str(e)) for e in _chain(error))
    return (
        "the system kills one when the memory is used up: use fewer data.workers" if found else ""
    )
