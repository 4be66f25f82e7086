"""poa-ds latency: rounds, percentiles and whose times may be used; with a clock of the test's."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from poa_ds.cli import main
from poa_ds.evaluate import results
from poa_ds.evaluate.latency import command as latency
from poa_ds.evaluate.latency import rows as latency_rows
from poa_ds.evaluate.latency.command import measure
from poa_ds.evaluate.latency.rows import LatencyRow, Place
from poa_ds.system.errors import UserError
from tests.support.teachers import make_teacher

PLACE = Place("cpu", latency_rows.processor("cpu"), 2, 1, "torch 2", 1, "fp32", 32)


def row(size: str, median: float, **changed: object) -> LatencyRow:
    place = dataclasses.replace(PLACE, cores=os.cpu_count())
    made = LatencyRow(3, size, place, median, median, median, 30, 0.1)
    return dataclasses.replace(made, **changed)


class Clock:
    """Runs a call and gives the seconds that it says; notes which ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __call__(self, call: Callable[[], tuple[str, float]]) -> float:
        name, seconds = call()
        self.ran.append(name)
        return seconds


def test_every_round_runs_every_size_once_in_changing_order() -> None:
    clock = Clock()
    calls = {name: (lambda name=name: (name, 0.1)) for name in "abc"}
    found = measure(calls, clock, least_runs=30, least_seconds=2)
    assert {name: len(times) for name, times in found.items()} == dict.fromkeys("abc", 30)
    warm = 3 * latency.WARM_RUNS
    assert clock.ran[:warm] == [name for name in "abc" for _ in range(latency.WARM_RUNS)]
    rounds = ["".join(clock.ran[i : i + 3]) for i in range(warm, len(clock.ran), 3)]
    assert all(sorted(order) == list("abc") for order in rounds)
    assert len(set(rounds)) > 3


@pytest.mark.parametrize(
    ("seconds", "runs"), [(0.1, 30), (0.05, 40), (0.001, latency.MOST_RUNS), (5.0, 30)]
)
def test_a_size_runs_often_and_long_enough_but_not_for_ever(seconds: float, runs: int) -> None:
    clock = Clock()
    found = measure({"a": lambda: ("a", seconds)}, clock, least_runs=30, least_seconds=1.99)
    assert found["a"] == [seconds] * runs
    warm = len(clock.ran) - runs
    assert warm == (1 if seconds > latency.WARM_SECONDS else latency.WARM_RUNS)


def test_a_row_comes_back_with_its_percentiles(tmp_path: Path) -> None:
    seconds = [number / 1000 for number in range(101)]
    made = latency._row(3, "32x2", PLACE, seconds, 0.5)
    assert (made.p10, made.median, made.p90) == pytest.approx((10, 50, 90))
    assert made.unsteady and not dataclasses.replace(made, p90=22.0).unsteady
    results.append(tmp_path / "latency.jsonl", made)
    assert latency_rows.read(tmp_path / "latency.jsonl") == [made]


def test_another_machine_s_rows_are_refused() -> None:
    foreign = dataclasses.replace(PLACE, processor="an abacus")
    with pytest.raises(UserError, match=r"no latency .* an abacus"):
        latency_rows.newest([row("32x2", 1.0, place=foreign)])
    own = [row("32x2", 1.0), row("48x3", 2.0), row("32x2", 3.0)]
    found = latency_rows.newest([*own, row("32x2", 9.0, place=foreign)])
    assert {size: found[size].median for size in found} == {"32x2": 3.0, "48x3": 2.0}


def test_rows_of_other_options_are_not_mixed() -> None:
    more = dataclasses.replace(row("32x2", 1.0).place, threads=8)
    found = latency_rows.newest([row("48x3", 2.0), row("32x2", 0.5, place=more)])
    assert set(found) == {"32x2"}


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_the_command_measures_extracted_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture, backend: str
) -> None:
    if backend == "onnxruntime":
        pytest.importorskip("onnxruntime")
    run, threads = make_teacher(tmp_path), torch.get_num_threads()
    words = ["--sizes", "32x2,48x3", "--backend", backend, "--runs", "3", "--seconds", "0.001"]
    assert main(["latency", str(run), *words]) == 0
    assert torch.get_num_threads() == threads
    rows = [json.loads(line) for line in (tmp_path / "latency.jsonl").open()]
    assert [row["size"] for row in rows] == ["32x2", "48x3"]
    for found in rows:
        assert 0 < found["p10"] <= found["median"] <= found["p90"]
        assert found["runs"] >= 3 and found["place"]["backend"].startswith(backend)
    assert "images/s" in capsys.readouterr().out


def test_a_dry_run_and_bad_options_run_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(make_teacher(tmp_path))
    monkeypatch.setattr(latency, "measure", None)  # would fail
    assert main(["latency", run, "--sizes", "all", "--dry-run"]) == 0
    assert "4 sizes" in capsys.readouterr().out
    fp16 = ["--backend", "onnxruntime", "--precision", "fp16"]
    assert main(["latency", run, *fp16]) == 2
    assert "--precision fp32" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["latency", run, "--device", "cuda"]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "latency.jsonl").exists()
