"""Compilation for chips that are not here, and the benchmark's smoke run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from poa_kernels import aot, bench, dispatch
from poa_kernels.bench import Ceilings, Figure
from poa_kernels.comparisons import Comparison
from poa_kernels.language import Case

ROOT = Path(__file__).parents[2]
GOOD = {"hgmma": 4, "hmma": 0, "copies": 2, "spills": 0}


def program(*arguments: str) -> subprocess.CompletedProcess:
    """A module of the package in a process of its own, without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("capability", "shared", "counts", "complaint"),
    [
        (90, 1000, {}, ""),
        (90, 1000, {"spills": 3}, "spills registers 3 times"),
        (80, 166913, {"hgmma": 0, "hmma": 8}, "166913 bytes of shared memory, 166912 allowed"),
        (90, 1000, {"hgmma": 0}, "no HGMMA instruction"),
        (90, 1000, {"hmma": 2}, "2 HMMA instructions instead of HGMMA"),
        (80, 1000, {"hgmma": 0}, "no HMMA instruction"),
    ],
)
def test_what_a_kernel_must_not_do(capability, shared, counts, complaint) -> None:
    case = Case("k", None, {}, {}, 4, 2, products=True)
    assert aot._complaint(case, capability, shared, GOOD | counts) == complaint


def test_a_kernel_compiles_for_both_chips(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = program("poa_kernels.aot", "--only", "gelu", "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert [r["chip"] for r in found] == ["sm_80", "sm_90"]
    assert all(r["registers"] > 0 and not r["complaint"] for r in found)


@pytest.mark.parametrize("chip", aot.CHIPS)
def test_no_size_and_no_number_of_rows_launches_what_was_not_compiled(chip: str) -> None:
    done = program("tests.kernels.launches", chip)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["launches"] > 30 and not found["missing"]


def test_a_filter_that_matches_nothing_fails() -> None:
    assert program("poa_kernels.aot", "--only", "no such kernel").returncode == 1


@pytest.mark.slow
def test_every_kernel_of_the_table_compiles() -> None:
    done = program("poa_kernels.aot")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_benchmark_runs_through_and_every_error_is_small(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    done = program("poa_kernels.bench", "--smoke", "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert list(found["step"]["results"]) == ["ours", "three passes", "plain", "compiled"]
    assert found["smoke"] and all(f["milliseconds"] is None for f in found["figures"])
    assert {f["contender"] for f in found["figures"]} >= {"published", "library", "triton"}


def test_the_benchmark_refuses_a_wrong_contender() -> None:
    import torch

    right, wrong = torch.ones(3), torch.tensor([1.0, 1.0, 1.1])
    comparison = Comparison("sum", {"a": lambda: [right], "b": lambda: [wrong]}, lambda: [right])
    with pytest.raises(RuntimeError, match="sum, b: error"):
        bench.compare(comparison, Ceilings(1, 1), smoke=True)


@pytest.mark.parametrize(
    ("milliseconds", "error", "expected"),
    [
        ({"triton": 0.5, "descriptors": 0.4}, 1e-3, "descriptors"),
        ({"triton": 0.97, "descriptors": 2.0}, 1e-3, ""),
        ({"triton": 0.5, "descriptors": 0.9}, 3e-3, ""),
    ],
)
def test_a_kernel_wins_if_it_is_faster_and_as_exact(milliseconds, error, expected) -> None:
    def figure(name: str, ms: float, error: float) -> Figure:
        return Figure("c", name, ms, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, error)

    figures = [figure("published", 2.0, 1e-3), figure("library", 1.0, 1e-3)]
    figures += [figure(name, ms, error) for name, ms in milliseconds.items()]
    assert bench.winner(figures, 1.05) == expected


def test_what_the_benchmark_writes_is_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "TABLE", tmp_path / "table.json")
    dispatch.TABLE.write_text(dispatch.text_of(dispatch.table()))
    product = "two_stream_linear.forward"
    decided = {f"{product}/3x1": ["descriptors"] * 3, f"{product}/1x1": ["triton", "", "triton"]}
    bench.write_table(decided | {"gelu": ["triton"]}, chip="sm_90", machine="a chip")
    found = json.loads(dispatch.TABLE.read_text())
    assert dispatch.text_of(found) == dispatch.TABLE.read_text()
    monkeypatch.setattr(dispatch, "table", lambda: found)
    used = [dispatch.entry("sm_90", product, shape)["use"] for shape in ("3x1", "1x1", "4x1")]
    assert used == ["descriptors", "library", "library"]
    assert dispatch.entry("sm_90", "gelu")["measured"] == "a chip"
    assert dispatch.entry("sm_80", "gelu")["use"] == "reference"
    labels = [case.name for case in aot.cases("sm_90")]
    assert f"{product}/3x1" in labels and f"{product}/1x1" in labels


def test_the_benchmark_says_no_without_a_gpu_and_about_writing_smoke() -> None:
    done = program("poa_kernels.bench", "--smoke", "--write-table")
    assert done.returncode == 2 and "measures nothing" in done.stderr
