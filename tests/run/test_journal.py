"""What a line of a run says of the time to come."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from poa_ds.recipe import derived, load
from poa_ds.run.clock import Clock
from poa_ds.run.journal import Journal


@pytest.mark.parametrize(
    ("step", "left"),
    [(4, "1 min"), (6, "54 s"), (7, "34 s"), (8, "34 s"), (9, "27 s"), (11, "27 s"), (12, "")],
)
def test_an_evaluation_and_a_save_that_are_due_are_still_to_come(step: int, left: str) -> None:
    clock = Clock(images_per_step=1)
    clock.take()  # steps of no time
    clock.evaluation_seconds, clock.save_seconds = 20.0, 7.0
    numbers = derived.of(load.from_dict({}), 0)
    numbers = replace(numbers, steps=12, evaluation_steps=6, checkpoint_steps=4)
    own = SimpleNamespace(_numbers=numbers, _clock=clock, _last_step=12)
    assert Journal._left(own, step) == (left and f", {left} left")
