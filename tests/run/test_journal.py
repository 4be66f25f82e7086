"""What a line of a run says of the time to come."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from poa_ds.recipe import derived, load
from poa_ds.run.clock import Clock
from poa_ds.run.journal import Journal


@pytest.mark.parametrize(
    ("step", "left"), [(5, "3 min"), (6, "3 min"), (7, "1 min"), (11, "1 min"), (12, "")]
)
def test_an_evaluation_that_is_due_is_still_to_come(step: int, left: str) -> None:
    clock = Clock(images_per_step=1)
    clock.take()  # steps of no time
    clock.evaluation_seconds = 80.0
    numbers = replace(derived.of(load.from_dict({}), 0), steps=12, evaluation_steps=6)
    own = SimpleNamespace(_numbers=numbers, _clock=clock, _last_step=12)
    assert Journal._left(own, step) == (left and f", {left} left")
