"""The second part of docs/faults.md: what is said where the machine or another run is in the way.

POA_WRITE_DOCS=1 writes it anew. Each sentence is made here by the function that a run calls.
"""

import errno
import os
import re
import socket
from pathlib import Path

import pytest

from poa_ds.run.watchdog import SET_UP
from poa_ds.system import limits, lock
from poa_ds.system.errors import UserError
from poa_ds.system.rendezvous import check_port

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
HEAD = """
## The machine or another run in the way

Written by `tests/run/test_faults_document.py`. Each ends the run at once, with status 1 unless the
table says otherwise; once it is mended, the same command continues.

| in the way | it says |
|---|---|
"""


def os_error(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([name] if name else []))


def port_taken() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with pytest.raises(UserError) as found:
            check_port({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": port})
    return str(found.value).replace(port, "N")


def folder_taken() -> str:
    other = lock.Holder("a training", "node1", 4711, "2026-01-31 12:00:00", "", "", "")
    return str(lock._in_use(Path("RUN") / lock.NAME, other))


def limit(error: Exception) -> str:
    return re.sub(
        r"`ulimit -n \d+`|let an administrator raise the limit", "raise it", limits.explained(error)
    )


def rows() -> dict[str, str]:
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    files = re.sub(r"^\d+", "N", limit(os_error(errno.EMFILE)))
    return {
        "another run in `output_dir`": folder_taken(),
        "the port of the rendezvous is taken": port_taken(),
        "too few open files (`ulimit -n`)": files,
        "`/dev/shm` is full": limit(RuntimeError("killed by signal: Bus error")),
        "the memory is used up": limit(MemoryError()),
        "a rank is killed for memory, by the system or a limit of the job (76; 137 of one alone)": (
            f"another rank ended, see its message; {limits.memory_killed(-1)}"
        ),
        "a loader process is killed (status 70)": limits.killed(killed),
        "no more processes": re.sub(r"\(.*?\)", "(...)", limit(os_error(errno.EAGAIN))),
        "a file that may not be read or written": limit(os_error(errno.EACCES, "RUN/knn.jsonl")),
        "a file system that is read-only": limit(os_error(errno.EROFS, "RUN/knn.jsonl")),
        "a rank that ends during set-up (76)": f"rank N ended during {SET_UP}, see its message",
    }


def test_the_document_has_what_a_run_says() -> None:
    text = HEAD + "".join(f"| {name} | {said} |\n" for name, said in rows().items())
    before = DOCUMENT.read_text().partition(HEAD[:6])[0]
    if os.environ.get("POA_WRITE_DOCS"):
        DOCUMENT.write_text(before + text)
    assert DOCUMENT.read_text() == before + text
