"""Images of five channels of 16 bits from training to the model that leaves: nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from poa_ds import cli
from poa_ds.export.folder import reload
from tests.distributed.programs.launch import free_port
from tests.run.test_training import ROOT, command, environment, losses
from tests.support import tiffs

SIDE, MEAN, STD = 32, 0.5, 0.25
WORDS = (
    f"data.channels={tiffs.CHANNELS}",
    f"data.range=[0,{tiffs.WHITE}]",
    f"augmentation.mean={[MEAN] * tiffs.CHANNELS}",
    f"augmentation.std={[STD] * tiffs.CHANNELS}",
    *("augmentation.saturation=0", "augmentation.hue=0", "augmentation.gray=0"),
    *(f"evaluation.resize={SIDE}", f"evaluation.crop={SIDE}"),
    *("schedule.steps_per_epoch=2", "checkpoint.every_epochs=1", "evaluation.every_epochs=0"),
    *("evaluation.at_start=false", "evaluation.sizes=[48x3]"),
    "data.workers=0",
)


def on_two_ranks(words: list[str]) -> str:
    """What the program says; it must end well."""
    done = subprocess.run(
        words, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_images_of_five_channels_train_resume_and_leave(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, numbers = tmp_path / "run", range(30)
    for number in numbers:
        part = "val" if number % 3 == 0 else "train"
        path = tmp_path / part / f"kind{number % 2}" / f"{number:02d}.tif"
        tiffs.write(path, tiffs.numbers(number, SIDE, SIDE))
    ranks = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    start = [sys.executable, *ranks, str(free_port())]
    words = [*start, *command(tmp_path, out, *WORDS)[1:], "--deepspeed_config", "zero2"]
    on_two_ranks(words)
    assert sorted(losses(out)) == [1, 2]
    assert "continues" in on_two_ranks([*words, "schedule.epochs=2"])
    found = losses(out)
    assert sorted(found) == [1, 2, 3, 4]
    assert all(np.isfinite(value) for row in found.values() for value in row.values())
    assert any(key.startswith("knn") for key in found[4])
    size, val = "48x3", str(tmp_path / "val")
    assert cli.main(["eval", "knn", str(out), "--sizes", size, "--workers", "0", "--floors"]) == 0
    embedded = ["embed", str(out), "--images", val, "--sizes", size, "--workers", "0"]
    assert cli.main([*embedded, "--out", str(tmp_path / "features")]) == 0, capsys.readouterr().err
    extracted = ["extract", str(out), "--size", size, "--out", str(tmp_path / "model"), "--check"]
    assert cli.main([*extracted, "--images", val]) == 0, capsys.readouterr().err
    keys = [json.loads(line)["key"] for line in (tmp_path / "features" / "rows.jsonl").open()]
    assert len(keys) == 10
    images = np.stack([tiffs.numbers(int(Path(key).stem), SIDE, SIDE) for key in keys])
    pixels = (images / np.float32(tiffs.WHITE) - MEAN) / STD
    with torch.no_grad():
        wanted = reload(tmp_path / "model")(torch.from_numpy(pixels.astype(np.float32))).numpy()
    rows = load_file(next((tmp_path / "features").glob("*.safetensors")))["features"]
    np.testing.assert_allclose(rows, wanted, atol=1e-4)
