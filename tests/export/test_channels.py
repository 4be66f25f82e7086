"""Sizes for images of five channels outside: every format, its card, teachers, what refuses."""

import json
from pathlib import Path

import pytest
import torch

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.export.folder import reload
from poa_ds.export.start import begin
from poa_ds.methods import frozen
from poa_ds.methods.method import method
from poa_ds.model.space import Subnet
from poa_ds.recipe import load
from poa_ds.system.errors import UsageError, UserError
from tests.export.test_folder import MEAN, SIZES, made

FORMATS = [
    ("vit", "timm"),
    ("vit", "hf"),
    ("vit", "onnx"),
    ("swin", "state-dict"),
]


@pytest.mark.parametrize(("kind", "style"), FORMATS)
def test_a_size_for_five_channels_is_the_elastic_network_in_every_format(
    kind: str, style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(kind, tmp_path / "run", channels=5)
    size = SIZES[kind][-1]
    words = ["extract", str(tmp_path / "run"), "--size", size, "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--format", style, "--check"]) == 0, capsys.readouterr().err
    assert "float32 (B, 5, 64, 64)" in capsys.readouterr().out
    assert "Images have 5 channels" in (tmp_path / "out" / "README.md").read_text()
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    if style == "hf":
        assert about["num_channels"] == 5
        assert not (tmp_path / "out" / "preprocessor_config.json").exists()
        with pytest.raises(UserError, match="a folder of transformers has other names"):
            begin(method(load_teacher(tmp_path / "run")[1]).networks(), str(tmp_path / "out"))
    else:
        assert about["pretrained_cfg"]["input_size"] == [5, 64, 64]
        assert about["pretrained_cfg"]["mean"] == MEAN and len(about["pretrained_cfg"]["std"]) == 5
    model, _, _ = load_teacher(tmp_path / "run")
    images = torch.randn(2, 5, 64, 64)
    wanted = model(images, Subnet.read(size))[:, 0]
    found = reload(tmp_path / "out")(images)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_a_frozen_teacher_of_as_many_channels_and_none_of_others(tmp_path: Path) -> None:
    recipe = made("vit", tmp_path / "run", channels=5)
    words = ["extract", str(tmp_path / "run"), "--size", "48x3", "--out", str(tmp_path / "t")]
    assert cli.main(words) == 0
    own = {"dtype": torch.float32, "device": torch.device("cpu")}
    images, pixels = torch.randn(2, 5, 64, 64), recipe.augmentation
    of_run, extracted = (frozen.find(str(tmp_path / name), 64) for name in ("run", "t"))
    rows = [frozen.Embedder(f, pixels.mean, pixels.std, **own)(images) for f in (of_run, extracted)]
    torch.testing.assert_close(*rows, rtol=0, atol=1e-5)
    assert of_run.cost(64).flops == pytest.approx(extracted.cost(64).flops, rel=0.05)
    tree = {
        "crops": {"global_size": 64, "local_count": 0},
        "evaluation": {"resize": 64, "crop": 64, "sizes": ["all"]},
        "objective": {"method": "seed", "ibot": 0, "koleo": 0},
        "distill": {"teacher": str(tmp_path / "run"), "queue": 64000},
    }
    with pytest.raises(UserError, match=r"takes images of 5 channels, data\.channels is 3"):
        frozen.of_recipe(load.from_dict(tree))


def test_what_reads_photographs_alone_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("vit", tmp_path / "run", channels=5)
    run, none = str(tmp_path / "run"), str(tmp_path / "none")
    for words in (
        ["eval", "segmentation", run, "--layout", "ade20k", "--train", none, "--val", none],
    ):
        assert cli.main(words) == UsageError.exit_status, words
        assert "data.channels" in capsys.readouterr().err
    words = ["latency", run, "--sizes", "32x2", "--device", "cpu", "--runs", "3"]
    assert cli.main(words) == 0, capsys.readouterr().err
    told = r"augmentation.mean .* is of 3 channels, data.channels is 4"
    with pytest.raises(UsageError, match=told):
        load.from_dict({"data": {"channels": 4}})
