"""Numbers that follow from a recipe: evaluations to come, and their share of the work."""

from dataclasses import replace

import pytest

from poa_ds.recipe import derived, load


@pytest.mark.parametrize(("every", "wanted"), [(0, 1), (4, 3), (5, 2), (10, 1), (20, 1), (1, 9)])
def test_evaluations_and_saves_to_come_are_those_that_a_slow_count_finds(
    every: int, wanted: int
) -> None:
    numbers = replace(derived.of(load.from_dict({}), 0), steps=10)
    numbers = replace(numbers, evaluation_steps=every, checkpoint_steps=every)
    due = [step for step in range(2, 11) if step == 10 or (every and step % every == 0)]
    assert numbers.evaluations_between(1, 10) == len(due) == wanted
    assert numbers.checkpoints_between(1, 10) == wanted


@pytest.mark.parametrize(
    ("bank", "said"), [(1600, "about 7.1 % of the"), (10**7, "about 446 times the")]
)
def test_work_beyond_that_of_the_training_is_told_in_times(bank: int, said: str) -> None:
    tree = {
        "backbone": {"width": {"min": 1024}, "depth": {"min": 24}},
        "crops": {"local_count": 0},
        "schedule": {"steps_per_epoch": 1, "epochs": 10},
        "evaluation": {"queries": "q", "bank_images": bank, "at_start": False, "every_epochs": 1},
    }
    assert said in derived.describe(load.from_dict(tree), 0)


def test_the_share_of_the_evaluation_counts_forwards() -> None:
    # one size (the intact one), no local crops: 2 teacher + 3 x 2 x 2 student forwards per image
    tree = {
        "backbone": {"width": {"min": 1024}, "depth": {"min": 24}},
        "crops": {"local_count": 0},
        "schedule": {"steps_per_epoch": 1, "epochs": 10},
        "evaluation": {"queries": "q", "bank_images": 1600, "at_start": False, "every_epochs": 1},
    }
    assert derived.of(load.from_dict(tree), 0).evaluation_share == pytest.approx(1 / 14)
