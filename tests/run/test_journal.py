"""What a line of a run says of the time to come."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from poa_ds.recipe import derived, load
from poa_ds.run import journal
from poa_ds.run.clock import Clock
from poa_ds.run.journal import LINES_AT_ANY_PACE, Journal, Lines


@pytest.mark.parametrize(
    ("step", "left", "evaluations"),
    [(4, 61, 40), (6, 54, 40), (7, 34, 20), (8, 34, 20), (9, 27, 20), (11, 27, 20)],
)
def test_an_evaluation_and_a_save_that_are_due_are_still_to_come(
    step: int, left: float, evaluations: float
) -> None:
    clock = Clock(images_per_step=1)
    clock.take()  # steps of no time
    clock.evaluation_seconds, clock.save_seconds = 20.0, 7.0
    numbers = derived.of(load.from_dict({}), 0)
    numbers = replace(numbers, steps=12, evaluation_steps=6, checkpoint_steps=4)
    own = SimpleNamespace(_numbers=numbers, _clock=clock, _last_step=12)
    assert Journal._left(own, step) == pytest.approx((left, evaluations), abs=0.9)


def test_a_long_log_has_a_line_every_ten_seconds_at_most_and_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock.now)
    lines, printed = Lines(), []
    for second in range(LINES_AT_ANY_PACE + 35):
        clock.now += 1
        if lines.due(last=second == LINES_AT_ANY_PACE + 34):
            printed.append(second - LINES_AT_ANY_PACE)
    assert printed == [*range(-LINES_AT_ANY_PACE, 0), 9, 19, 29, 34]
