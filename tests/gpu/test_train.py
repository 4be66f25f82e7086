"""Trainings on a GPU: bf16 under each stage, one stopped and continued; fp16 that overflows."""

from pathlib import Path

import pytest
import torch

from poa_ds.bench.gpu import parts, runner
from poa_ds.bench.gpu.calls import Scene

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_a_few_steps_in_every_precision_and_stage(tmp_path: Path):
    (tmp_path / "parts").mkdir()
    scene = Scene(tmp_path, "cuda", smoke=True)
    train = next(part for part in parts.parts(scene) if part.name == "train")
    runner.run(scene, [train], 600)
    found = scene.outcomes("train")
    assert {name: o.why for name, o in found.items() if o.status != "done"} == {}
    assert 0 < found["fp16, overflow"].figures["skipped steps"]
