"""What measuring costs; what is said about waiting for data: test_training.py."""

import pytest
import torch

from poa_ds.run.clock import Clock


def test_only_the_first_two_steps_of_a_run_wait_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[int] = []
    clock = Clock(images_per_step=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(len(clock.seconds)))
    for step in range(30):
        clock.step_done()
        if step % 10 == 9:
            clock.take()
        if step == 14:
            clock.restart()  # as after a checkpoint or an evaluation
    assert waits == [0, 1]


def test_the_time_left_is_that_of_the_usual_step_and_of_the_last_evaluation_and_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock(images_per_step=1)
    for seconds in (9.0, 2.0, 2.0, 3.0, 2.0):  # of ten steps: the first are slow
        for _ in range(10):
            clock.step_done()
        now[0] += 10 * seconds
        clock.take()
    assert clock.left(50, 0, 3) == 100
    for row in (
        {"speed/evaluation_seconds": 9.0},
        {"speed/save_seconds": 5.0},
        {"loss/total": 1.0},
    ):
        clock.recall(row | {"step": 1})
    clock.recall({"step": 2, "speed/evaluation_seconds": 30.0})
    assert clock.left(50, 2, 3) == 175


def test_the_row_after_a_save_has_its_seconds() -> None:
    clock = Clock(images_per_step=1)
    clock.saved(8.0)
    first, second = clock.take(), clock.take()
    assert first["speed/save_seconds"] == 8 and "speed/save_seconds" not in second
