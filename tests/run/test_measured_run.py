"""TIFFs of five channels of 16 bits: train, go on, measure, extract, embed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from poa_ds import cli
from poa_ds.data.image.values import Values
from poa_ds.data.image.views import center_view
from poa_ds.export.folder import reload
from tests.run.test_training import command, run
from tests.support import tiffs

HALF = "[0.5,0.5,0.5,0.5,0.5]"


@pytest.mark.slow
def test_five_channels_of_sixteen_bits_go_all_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        tiffs.tree(tmp_path / part, 24 if part == "train" else 8)
    colourless = [f"augmentation.{key}=0" for key in ("saturation", "hue", "gray")]
    words = command(
        *(tmp_path, tmp_path / "run", "data.channels=5", "data.range=[0,4095]", *colourless),
        *(f"augmentation.mean={HALF}", f"augmentation.std={HALF}"),
        *("schedule.steps_per_epoch=2", "checkpoint.every_epochs=1", "evaluation.every_epochs=1"),
    )
    run([*words, "schedule.epochs=1"])
    printed = run([*words, "schedule.epochs=2", "data.range=[0,9000]"], status=2)
    assert "data.range" in printed and "Give the old values" in printed
    run([*words, "schedule.epochs=2"])

    folder = str(tmp_path / "run")
    assert cli.main(["eval", "knn", folder, "--sizes", "48x3"]) == 0
    assert "48x3" in capsys.readouterr().out
    out, checked = tmp_path / "model", ["--format", "timm", "--check"]
    assert cli.main(["extract", folder, "--size", "48x3", "--out", str(out), *checked]) == 0
    found = tmp_path / "features"
    asked = ["--images", str(tmp_path / "val"), "--sizes", "48x3", "--out", str(found)]
    assert cli.main(["embed", folder, *asked]) == 0
    first = json.loads((found / "rows.jsonl").read_text().splitlines()[0])
    content = (tmp_path / "val" / first["key"]).read_bytes()
    image = center_view(torch.from_numpy(Values(5, (0, 4095)).read(content)), 32, 32)
    with torch.inference_mode():
        wanted = reload(out)((image[None] / 255 - 0.5) / 0.5)
    [file] = found.glob("*.safetensors")
    rows = torch.from_numpy(load_file(file)["features"])
    torch.testing.assert_close(rows[:1], wanted, rtol=1e-4, atol=1e-5)
