"""Alarms of a collapse or a spike, on series and on real runs."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from poa_ds.track.alarms import Alarms, LossWindow
from tests.run.test_training import ROOT, command, environment
from tests.support.shards import make_shards


def test_figures_that_are_not_finite_raise_no_alarm() -> None:
    row = {"health/effective_rank": math.nan, "health/feature_std": math.nan}
    found = Alarms(warmup_steps=0).judge(100, row | {"loss/total": math.nan})
    assert found == ({"health/alarm": 0.0}, [])


def test_a_spike_is_measured_in_robust_deviations() -> None:
    window = LossWindow()
    losses = [8 + 0.1 * (-1) ** step * (1 + step % 3) for step in range(30)]
    found = [window.deviation({"loss/total": x}) for x in [*losses, 9.0]]
    assert found[:10] == [None] * 10
    middle = float(np.median(losses))
    deviation = 1.4826 * float(np.median(np.abs(np.array(losses) - middle)))
    assert found[-1] == pytest.approx((9.0 - middle) / deviation)
    assert max(found[10:-1]) < 3


def test_a_term_that_comes_in_is_no_spike() -> None:
    window = LossWindow()
    for _ in range(20):
        window.deviation({"loss/total": 5.0, "loss/intact_ibot": 0.0})
    assert window.deviation({"loss/total": 9.0, "loss/intact_ibot": 4.0}) is None


def test_an_alarm_is_said_when_it_begins_and_when_it_is_over() -> None:
    alarms = Alarms(warmup_steps=30)
    series = {25: 0.01, 30: 0.01, 35: 0.6, 40: 0.09, 45: 0.12, 50: 0.09, 55: 0.2, 60: 0.6}
    said, on = {}, {}
    for step, value in series.items():
        own, notices = alarms.judge(step, {"health/feature_std": value, "loss/total": 1.0})
        said |= {step: [notice.line for notice in notices]} if notices else {}
        on[step] = own["health/alarm"]
    assert list(said) == [40, 55]  # not in the warm-up; 0.12 is not yet healthy again
    assert said[40] == [
        "warning: step 40: alarm: health/feature_std is 0.09 (below 0.1): "
        "all images have nearly the same features"
    ]
    assert said[55] == ["warning: step 55: over: health/feature_std is 0.2"]
    assert on == {25: 0, 30: 0, 35: 0, 40: 1, 45: 1, 50: 1, 55: 0, 60: 0}


def test_no_collapse_is_seen_in_the_first_steps_of_a_run_without_warm_up() -> None:
    alarms = Alarms(warmup_steps=0)
    row = {"health/feature_std": 0.01, "loss/total": 1.0}
    said = {step: len(alarms.judge(step, row)[1]) for step in (1, 4, 20, 21, 22)}
    assert said == {1: 0, 4: 0, 20: 0, 21: 1, 22: 0}


def test_a_spike_is_said_in_the_warm_up_too() -> None:
    alarms = Alarms(warmup_steps=1000)
    lines = [alarms.judge(step, {"loss/total": 8.0})[1] for step in range(20)]
    own, spike = alarms.judge(20, {"loss/total": 12.0})
    assert not any(lines) and own["health/loss_deviation"] == pytest.approx(50)
    assert len(spike) == 1 and "the loss jumped" in spike[0].text


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "train", 60)
    make_shards(root / "val", 21)
    return root


def trained(shards: Path, out: Path, *more: str) -> tuple[list[dict], str]:
    """(rows of metrics.jsonl, stderr) of a real run of 40 steps."""
    words = command(shards, out, "evaluation.queries=", "data.workers=0")
    words += ["schedule.steps_per_epoch=40", "checkpoint.every_epochs=1", "log_every=2", *more]
    done = subprocess.run(
        words, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "metrics.jsonl").open()], done.stderr


COLLAPSES = {
    "uniform targets": (
        "objective.koleo=0",
        "objective.centering=softmax",
        "schedule.teacher_temperature=0.5",
        "schedule.teacher_temperature_start=0.5",
    ),
    "one prototype": (
        "objective.koleo=0",
        "objective.centering=softmax",
        "schedule.momentum=0",
        "schedule.momentum_end=0",
        "schedule.base_lr=0.03",
    ),
}
SAID = {
    "uniform targets": "health/target_entropy is 0.99",
    "one prototype": "all images share one prototype",
}


@pytest.mark.parametrize(
    "way", ["uniform targets", pytest.param("one prototype", marks=pytest.mark.slow)]
)
def test_a_run_that_collapses_raises_the_alarm(way: str, shards: Path, tmp_path: Path) -> None:
    rows, errors = trained(shards, tmp_path, *COLLAPSES[way])
    assert SAID[way] in errors, errors
    assert max(row["health/alarm"] for row in rows) >= 1


@pytest.mark.slow
def test_a_healthy_run_raises_none(shards: Path, tmp_path: Path) -> None:
    rows, errors = trained(shards, tmp_path)
    assert "alarm" not in errors, errors
    assert len(rows) == 20 and all(row["health/alarm"] == 0 for row in rows)
    assert all(row["skipped_total"] == 0 for row in rows)
    assert {f"health/{name}" for name in ("feature_std", "effective_rank")} <= rows[0].keys()
