"""The server's lines in the documents: their features are those of the network."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.data.image.views import center_view
from poa_ds.model.space import Subnet
from tests.export.test_folder import made
from tests.test_architecture import ROOT


def test_the_lines_of_a_server_give_the_network_s_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels too are those of evaluations, up to the rounding of two bicubic filters."""
    text = (ROOT / "docs/howto/deploy.md").read_text()
    [code] = re.findall(r"## Serving.*?```python\n(.*?)```", text, re.DOTALL)
    recipe = made("vit", tmp_path / "run")
    out = tmp_path / "models" / "384x12"  # the name in the lines, of a small network
    words = ["--size", "32x2", "--format", "onnx", "--out", str(out)]
    assert cli.main(["extract", str(tmp_path / "run"), *words]) == 0
    ramp = np.linspace(0, 255, 90 * 120 * 3).reshape(90, 120, 3).astype(np.uint8)
    paths = []
    for turn in range(3):
        paths.append(tmp_path / f"{turn}.png")
        Image.fromarray(np.rot90(ramp, turn).copy()).save(paths[-1])
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    found = names["features"](paths)
    pixels = torch.stack([torch.from_numpy(names["pixels"](path)) for path in paths])
    model, _, _ = load_teacher(tmp_path / "run")
    wanted = model(pixels, Subnet(32, 2))[:, 0]
    assert found.shape == (3, 32)
    assert np.abs(found - wanted.numpy()).max() < 1e-4 * wanted.abs().max()
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (recipe.augmentation.mean, recipe.augmentation.std)
    )
    for path, own in zip(paths, pixels, strict=True):
        image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
        view = center_view(image, recipe.evaluation.resize, recipe.evaluation.crop)
        difference = ((view / 255 - mean) / std - own).abs()
        assert difference.mean() < 0.02, path  # a grey value is about 0.017
