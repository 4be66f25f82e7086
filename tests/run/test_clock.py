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
