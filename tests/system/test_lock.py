"""One program at a time in a folder: who is refused, what is a leftover, who wins of many."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poa_ds.system import lock
from poa_ds.system.errors import UserError
from poa_ds.system.lock import NAME, held
from tests.run.test_training import ROOT, environment

HOLDS = """
import sys, time
from pathlib import Path
from poa_ds.system import lock
lock.BEAT_SECONDS = 0.2
with lock.held(Path(sys.argv[1]), "a test", lost=lambda text: print(text, flush=True)):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.1), ("LEASE", 3.0), ("LOOK", 0.05), ("SETTLE", 0.5)):
        monkeypatch.setattr(lock, f"{name}_SECONDS", seconds)


def never(text: str) -> None:
    pytest.fail(text)


def test_an_interrupt_before_the_block_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(thread: threading.Thread) -> None:
        assert (tmp_path / NAME).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with held(tmp_path, "a test", lost=never):
            pytest.fail("never begun")
    assert not (tmp_path / NAME).exists()


def start(folder: Path) -> subprocess.Popen:
    """A process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen]:
    with start(tmp_path) as process:
        yield process
        process.kill()


def holder(folder: Path) -> dict:
    return json.loads((folder / NAME).read_text())


def change(folder: Path, **values: object) -> None:
    """What the file says of its holder; not a sign of life of this one's doing."""
    (folder / NAME).write_text(json.dumps(holder(folder) | values))


def test_a_folder_is_made_held_and_free_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with held(folder, "a test", lost=never):
        assert holder(folder)["process"] == os.getpid()
    assert not folder.exists()  # nothing came of it
    with pytest.raises(ZeroDivisionError), held(folder, "a test", lost=never):
        (folder / "result").touch()
        1 / 0  # noqa: B018
    with held(folder, "a test", lost=never):
        assert sorted(path.name for path in folder.iterdir()) == [NAME, "result"]
    assert [path.name for path in folder.iterdir()] == ["result"]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_living_holder_is_named_at_once(
    stopped: bool, other: subprocess.Popen, tmp_path: Path
) -> None:
    if stopped:
        other.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with (
        pytest.raises(UserError, match=f"in use by a test, process {other.pid} on .*, since 2"),
        held(tmp_path, "another", lost=never),
    ):
        pass
    assert time.monotonic() - began < 2.0
    assert holder(tmp_path)["process"] == other.pid


def test_a_dead_holder_of_this_machine_leaves_nothing_to_wait_for(
    other: subprocess.Popen, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other.kill()  # and is a zombie: nobody asks for its status
    time.sleep(0.5)
    began = time.monotonic()
    with held(tmp_path, "another", lost=never):
        assert time.monotonic() - began < 2.0
    assert f"process {other.pid} on" in capsys.readouterr().err


def test_another_process_with_the_number_of_a_dead_holder_is_not_it(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps(vars(lock._this_process("a test"))))
    change(tmp_path, started="1")
    with held(tmp_path, "another", lost=never):
        assert holder(tmp_path)["what"] == "another"


def test_a_holder_of_another_host_is_found_by_its_signs(
    other: subprocess.Popen, tmp_path: Path
) -> None:
    """No time of the file is compared with a clock: a host's may be wrong, or set back."""
    change(tmp_path, place="far", host="node7")
    os.utime(tmp_path / NAME, (1, 1))
    with (
        pytest.raises(UserError, match=f"process {other.pid} on node7"),
        held(tmp_path, "another", lost=never),
    ):
        pass


@pytest.mark.parametrize("content", [None, b"", b"\xff{", b"[]"])
def test_what_gives_no_sign_is_taken_over(
    content: bytes | None, other: subprocess.Popen, tmp_path: Path
) -> None:
    """A host that is gone, or a file that a crash has left without its content."""
    change(tmp_path, place="far", host="node7")
    other.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    with held(tmp_path, "another", lost=never):
        assert holder(tmp_path)["process"] == os.getpid()
        other.send_signal(signal.SIGCONT)  # it comes back, and learns it
        line = other.stdout.readline()
        assert f"in use by another, process {os.getpid()} on" in line and "ends" in line
    assert not (tmp_path / NAME).exists()


def test_a_lock_that_somebody_removes_comes_back(tmp_path: Path) -> None:
    with held(tmp_path, "a test", lost=never):
        (tmp_path / NAME).unlink()
        end = time.monotonic() + 10
        while not (tmp_path / NAME).exists():
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize("leftover", [False, True])
def test_of_many_that_start_at_once_one_has_it(leftover: bool, tmp_path: Path) -> None:
    if leftover:
        with start(tmp_path) as dead:
            dead.kill()
    results: list[str] = []
    gate = threading.Barrier(4)

    def one(number: int) -> None:
        gate.wait()
        try:
            with held(tmp_path, f"number {number}", lost=results.append):
                results.append("held")
                time.sleep(4.0)
        except UserError as error:
            results.append(str(error))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("held") == 1, results
    assert sum("in use by number" in text for text in results) == 3, results


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file.* cannot be made a folder"),
        held(tmp_path / "file" / "run", "a test", lost=never),
    ):
        pass
