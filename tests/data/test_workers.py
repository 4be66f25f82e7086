"""Loader processes that cannot work: the run ends at once, with cause and remedy."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

from poa_ds.data.workers import loaded
from poa_ds.system import last_words, limits
from poa_ds.system.errors import UserError
from tests.run.test_training import ROOT, command, environment
from tests.support.shards import make_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "train", 60)
    return root


class Made(Dataset):
    """What `make(request)` gives, made in a loader process."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, request: int) -> Any:
        return self.make(request)


def in_a_thread(request: int) -> int:
    """As the threads that hand tensors over."""

    def fails() -> None:
        raise OSError(24, "Too many open files")

    threading.Thread(target=fails).start()
    time.sleep(60)
    return request


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda request: lambda: request, "pickle"),  # cannot be handed over
        (in_a_thread, "ulimit -n"),
    ],
)
def test_what_happens_beside_a_request_ends_the_loading(make: Callable, cause: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=cause):
        list(loaded(Made(make), range(100), workers=2))
    assert time.monotonic() - began < 30
    assert re.search(cause, f"loading images: {last_words.heard()}")  # whoever asks again
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def test_a_loader_is_told_to_be_killed_while_its_lost_connection_is_explained() -> None:
    """PyTorch raises that wherever the main thread is: it is what must come out."""

    def lost(request: int) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")

    def told(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    saying = last_words.listen()  # open: another loader still works
    before = signal.signal(signal.SIGALRM, told)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(RuntimeError) as caught:
            list(loaded(Made(lost), range(3), workers=0))
    finally:
        signal.signal(signal.SIGALRM, before)
        saying.close()
    assert limits.killed(caught.value)


def test_an_error_of_the_program_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        list(loaded(Made(lambda request: 1 // request), range(3), workers=1))


def test_items_come_in_their_order_whoever_makes_them() -> None:
    for workers in (0, 2):
        assert list(loaded(Made(lambda request: request**2), range(9), workers)) == [
            request**2 for request in range(9)
        ]


@pytest.mark.parametrize("files", [64, pytest.param(90, marks=pytest.mark.slow)])
def test_too_few_open_files_end_a_run_at_once(files: int, shards: Path, tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    words = command(shards, tmp_path, "data.workers=2", "evaluation.queries=")
    done = subprocess.run(
        words,
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=limited,
    )
    said = done.stderr
    assert done.returncode == 1, said
    assert f"{files} open files are not enough (ulimit -n)" in said
    assert re.search(r"\bstep \d+: ", said), said  # at which, by the loading or by the step
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_full_shared_memory_is_named(shards: Path, tmp_path: Path) -> None:
    if sys.platform != "linux" or os.geteuid() or not shutil.which("unshare"):
        pytest.skip("a small /dev/shm needs a name space of its own")
    words = command(
        shards, tmp_path, "data.workers=2", "batch.images_per_slot=16", "evaluation.queries="
    )
    small = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"',
        "sh",
    ]
    done = subprocess.run(
        [*small, *words], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 1, done.stderr
    assert "/dev/shm is full" in done.stderr and "--shm-size" in done.stderr
