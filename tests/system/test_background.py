"""Work behind the program's back: done in order, retried, given up, and never in the way."""

import threading
import time

import pytest

from poa_ds.system.background import Background


class Store:
    """Fails the first `failures` times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.done = failures, []

    def do(self, what: int) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("away")
        self.done.append(what)


def started(store: Store, **options: object) -> Background[Store]:
    chosen = {
        "opening": lambda: store,
        "is_final": lambda error: isinstance(error, ValueError),
        "advice": "see the file",
        "first_pause_seconds": 0.01,
    }
    return Background("Store", **(chosen | options))


def test_jobs_are_done_in_order_and_counted() -> None:
    store = Store()
    background = started(store)
    for i in range(50):
        background.submit(lambda s, i=i: s.do(i))
    assert background.close(5) == 0
    assert store.done == list(range(50))


def test_a_failing_job_is_retried_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(failures=4)
    background = started(store)
    for i in range(3):
        background.submit(lambda s, i=i: s.do(i))
    assert background.flush(5)
    assert background.close(5) == 0
    assert store.done == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "away" in lines[0] and "see the file" in lines[0]
    assert lines[1] == "Store works again"


def test_a_final_error_loses_its_job_only(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()

    def refuse(_: Store) -> None:
        raise ValueError("bad name")

    background = started(store)
    background.submit(refuse)
    background.submit(lambda s: s.do(1))
    assert background.close(5) == 1
    assert store.done == [1]
    assert "given up" in capsys.readouterr().err


def test_a_store_that_can_never_open_ends_the_thread(capsys: pytest.CaptureFixture[str]) -> None:
    def opening() -> Store:
        raise ValueError("no such scheme")

    background = started(Store(), opening=opening)
    background.submit(lambda s: s.do(1))
    assert not background.flush(0.2)
    background.submit(lambda s: s.do(2))
    assert background.close(5) == 3
    assert capsys.readouterr().err.count("no such scheme") == 1


def test_closing_ends_a_long_pause_with_one_last_try() -> None:
    store = Store(failures=1)
    background = started(store, first_pause_seconds=60)
    background.submit(lambda s: s.do(1))
    time.sleep(0.05)
    start = time.perf_counter()
    assert background.close(5) == 0
    assert store.done == [1] and time.perf_counter() - start < 2


def test_a_hanging_job_delays_neither_submit_nor_close() -> None:
    hang = threading.Event()
    background = started(Store())
    background.submit(lambda _: hang.wait())
    start = time.perf_counter()
    for i in range(20_000):  # more than are kept
        background.submit(lambda s, i=i: s.do(i))
    assert not background.flush(0.05)
    assert background.close(0.05) == 20_002
    assert time.perf_counter() - start < 2
    hang.set()
