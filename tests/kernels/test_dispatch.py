"""Which implementation runs: modes, the table, machines without Triton."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from poa_kernels import dispatch
from poa_kernels.aot import OPERATORS
from tests.kernels.truth import DEVICE

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_every_chip_has_a_line_for_every_operator() -> None:
    lines = [sorted(entries) for entries in dispatch.table().values()]
    plain = [[name for name in names if "/" not in name] for names in lines]
    assert plain[0] == plain[1] == plain[2]
    assert {name.partition(".")[0] for name in plain[0]} == set(OPERATORS)


def test_the_table_is_written_as_it_is_committed() -> None:
    assert dispatch.text_of(dispatch.table()) == dispatch.TABLE.read_text()


def test_nothing_is_triton_by_default_that_no_machine_measured() -> None:
    for chip, lines in dispatch.table().items():
        for name, line in lines.items():
            assert line["use"] in ("reference", "library", *dispatch.OURS)
            assert line["use"] not in dispatch.OURS or line.get("measured"), f"{name} on {chip}"


def test_auto_runs_pytorch_on_the_cpu_and_modes_can_be_forced() -> None:
    for mode, expected in (("auto", "reference"), ("reference", "reference")):
        with dispatch.using(mode):
            assert dispatch.choose("gelu", torch.zeros(2)) == expected
    with dispatch.using("triton"):
        assert dispatch.choose("gelu", torch.zeros(2, device=DEVICE)) == "triton"
    with dispatch.using("auto"):
        assert dispatch.choose("gelu", torch.zeros(2, device=DEVICE).double()) == "reference"


def test_a_shape_class_may_have_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {"op": {"use": "library", "tiles": {}}, "op/4x1": {"use": "triton", "tiles": {"BM": 1}}}
    monkeypatch.setattr(dispatch, "table", lambda: {"sm_90": lines})
    assert dispatch.entry("sm_90", "op", "4x1")["use"] == "triton"
    assert dispatch.entry("sm_90", "op", "1x1")["use"] == "library"


def test_a_chip_that_nobody_measured_runs_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "table", lambda: {"interpreter": {"op": {"use": "triton"}}})
    monkeypatch.setattr(dispatch, "chip", lambda device: "interpreter")
    monkeypatch.setattr(dispatch, "_choose", dispatch._choose.__wrapped__)  # nothing remembered
    for known, expected in ((True, "triton"), (False, "library")):
        monkeypatch.setattr(dispatch, "measured", lambda device, known=known: known)
        with dispatch.using("auto"):
            found = dispatch.choose("op", torch.zeros(2, device=DEVICE), otherwise="library")
        assert found == expected


def alone(code: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
    )


def test_without_triton_the_reference_runs() -> None:
    code = """
import importlib.util
import sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else real(name, *rest)
sys.modules["triton"] = None
import torch
from poa_kernels import (
    add_ln, attention, dispatch, gelu, photometric, prototype_ce, sinkhorn, two_stream_linear
)
print(dispatch.select("auto", "cpu"))
x = torch.randn(6, 48, requires_grad=True)
y = gelu.gelu(attention.attention(x, [(2, 3)], 16))
two_stream_linear.two_stream_linear((y,), torch.randn(8, 16), None, (8,))[0].sum().backward()
assert x.grad.isfinite().all() and sinkhorn.row_lse(x.detach(), 0.1).shape == (6,)
dispatch.select("triton", "cpu")
"""
    done = alone(code)
    assert "auto: plain PyTorch (triton is not installed)" in done.stdout, done.stderr
    assert re.search("ValueError: kernels: triton is impossible here.*not installed", done.stderr)


def test_without_a_gpu_triton_cannot_be_asked_for() -> None:
    code = "from poa_kernels import dispatch; print(dispatch.select('auto', 'cpu'));"
    done = alone(code + "dispatch.select('triton', 'cpu')")
    assert "auto: plain PyTorch (the device is cpu)" in done.stdout, done.stderr
    assert "allowed: auto, reference" in done.stderr
