"""Compilation for chips that are not here, and the benchmark's smoke run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from poa_kernels import aot, bench, comparisons, dispatch
from poa_kernels.bench import Ceilings, Figure
from poa_kernels.comparisons import Comparison
from poa_kernels.language import Case

ROOT = Path(__file__).parents[2]
OLDER = "3.6.0"
GOOD = {"hgmma": 4, "hmma": 0, "utcmma": 0, "copies": 2, "spills": 0}


def program(*arguments: str, first: Path = ROOT) -> subprocess.CompletedProcess:
    """A module of the package in a process of its own, without the interpreter.

    first: where modules are looked for before all other places.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (first, ROOT, ROOT / "kernels")))
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
        (100, 1000, {"utcmma": 8, "hgmma": 0}, ""),
        (100, 1000, {"hgmma": 0, "hmma": 2}, "no UTCMMA.*; 2 HMMA instructions instead of UTCMMA"),
    ],
)
def test_what_a_kernel_must_not_do(capability, shared, counts, complaint) -> None:
    case = Case("k", None, {}, {}, 4, 2, products=True)
    assert re.fullmatch(complaint, aot._complaint(case, capability, shared, GOOD | counts))


def test_a_kernel_compiles_for_every_chip(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = program("poa_kernels.aot", "--only", "gelu", "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert [r["chip"] for r in found] == list(aot.CHIPS)
    assert all(r["registers"] > 0 and not r["complaint"] for r in found)


@pytest.mark.parametrize("chip", sorted(set(aot.TILES.values())))
def test_no_size_and_no_number_of_rows_launches_what_was_not_compiled(chip: str) -> None:
    done = program("tests.kernels.launches", chip)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["launches"] > 30 and not found["missing"]


def test_a_filter_that_matches_nothing_fails() -> None:
    assert program("poa_kernels.aot", "--only", "no such kernel").returncode == 1


@pytest.mark.slow
def test_every_kernel_of_the_table_compiles() -> None:
    done = program("poa_kernels.aot", "--chip", "sm_80", "--chip", "sm_90")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_kernel_compiles_with_the_triton_of_torch_2_11_too(tmp_path: Path) -> None:
    """Machines with GPUs have this version today; its compiler gives out registers otherwise."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path]
    if subprocess.run([*command, f"triton=={OLDER}"], capture_output=True).returncode:
        pytest.skip(f"triton {OLDER} cannot be downloaded here")
    done = program("poa_kernels.aot", first=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"by triton {OLDER}" in done.stdout


@pytest.mark.slow
def test_the_benchmark_runs_through_and_every_error_is_small(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    done = program("poa_kernels.bench", "--smoke", "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert list(found["step"]["results"]) == ["ours", "three passes", "plain", "compiled"]
    assert found["smoke"] and all(f["milliseconds"] is None for f in found["figures"])
    assert {f["contender"] for f in found["figures"]} >= {"published", "library", "triton"}


def test_a_wrong_contender_is_called_so_and_never_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    right, wrong, file = torch.ones(3), torch.tensor([1.0, 1.0, 1.1]), tmp_path / "bench.json"

    def sums(scene: comparisons.Scene) -> Iterator[Comparison]:
        contenders = {"published": lambda: [right], "triton": lambda: [wrong]}
        yield Comparison("sum", contenders, lambda: [right])
        assert len(json.loads(file.read_text())["figures"]) == 2  # a kill loses nothing
        nan = {"triton": lambda: [wrong / 0 * 0]}
        yield Comparison("sum of nan", contenders | nan, lambda: [right])

    monkeypatch.setattr(comparisons, "all_of", sums)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert bench.main(["--smoke", "--only", "sum", "--json", str(file)]) == 1
    said = capsys.readouterr().err
    assert "sum, triton: error" in said and "sum of nan, triton: error nan" in said
    figures = bench.compare(next(sums(None)), Ceilings(1, 1), smoke=True)
    assert [f.wrong for f in figures] == [False, True]
    assert "sum, triton (wrong)" in bench.line(figures[1])
    fast = [replace(f, milliseconds=1.0 - f.wrong / 2) for f in figures]
    assert bench.winner(fast, 1.05) == ""
    assert bench.winner([fast[0], replace(fast[1], wrong=False, error=0.0)], 1.05) == "triton"


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
    text = dispatch.text_of(dispatch.table())
    monkeypatch.setattr(dispatch, "TABLE", tmp_path / "table.json")
    dispatch.TABLE.write_text(text)
    product = "two_stream_linear.forward"
    decided = {f"{product}/3x1": ["descriptors"] * 3, f"{product}/1x1": ["triton", "", "triton"]}
    decided |= {"gelu": ["triton"]}
    bench.write_table(decided, dispatch.TABLE, chip="sm_90", machine="a chip")
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
