"""Weights in 16 bits: half the file, features that differ by their rounding."""

from pathlib import Path

import pytest
import torch

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.export.folder import HALF_LIMIT, WEIGHTS, check
from poa_ds.model.space import Subnet
from tests.export.test_folder import made

CASES = [
    ("vit", "32x2", "timm"),
    ("vit", "32x2", "hf"),
    ("vit", "32x2", "onnx"),
    ("swin", "24x3", "state-dict"),
    pytest.param("swin", "24x3", "onnx", marks=pytest.mark.slow),
    pytest.param("vit", "32x2", "state-dict", marks=pytest.mark.slow),
    pytest.param("resnet", "64x1-1-1-1", "state-dict", marks=pytest.mark.slow),
    pytest.param("resnet", "64x1-1-1-1", "onnx", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "size", "style"), CASES)
def test_half_is_half_the_file_and_differs_by_rounding(
    kind: str, size: str, style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(kind, tmp_path / "run")
    model, _, _ = load_teacher(tmp_path / "run")
    words = ["extract", str(tmp_path / "run"), "--size", size, "--format", style]
    assert cli.main([*words, "--out", str(tmp_path / "whole")]) == 0
    words += ["--half", "--check", "--out", str(tmp_path / "half")]
    assert cli.main(words) == 0, capsys.readouterr().err
    bytes_of = {n: (tmp_path / n / WEIGHTS[style]).stat().st_size for n in ("whole", "half")}
    assert bytes_of["half"] < 0.75 * bytes_of["whole"]  # names and graph are not weights
    images = torch.randn(2, 3, 64, 64)
    differences = {n: check(tmp_path / n, model, Subnet.read(size), images) for n in bytes_of}
    assert differences["whole"] < 1e-4 < differences["half"] < HALF_LIMIT
