"""poa-ds look on images of five channels of 16 bits: three of them, or their mean, are shown."""

from pathlib import Path

import pytest
import torch

from poa_ds.cli import main
from poa_ds.evaluate.look.shown import chosen, numbers, pictures
from poa_ds.system.errors import UsageError
from tests.support import tiffs
from tests.support.teachers import make_teacher


def test_pictures_are_the_channels_that_were_asked_for() -> None:
    images = torch.rand(2, 5, 4, 4) * 255
    for asked, wanted in (
        (None, images[:, :3]),
        (numbers("5,3,1"), images[:, [4, 2, 0]]),
        (numbers("mean"), images.mean(1, keepdim=True).expand(-1, 3, -1, -1)),
    ):
        found = pictures(images, chosen(5, asked))
        assert found.shape == (2, 3, 4, 4) and found.dtype == torch.uint8
        assert (found.float() - wanted).abs().max() <= 0.5
    two = pictures(images[:, :2], chosen(2, None)).float()
    assert (two - images[:, :2].mean(1, keepdim=True)).abs().max() <= 0.5
    ordinary = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert pictures(ordinary, chosen(3, None)) is ordinary


def test_the_page_of_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = tiffs.CHANNELS
    run = make_teacher(
        tmp_path / "run",
        data={"channels": count, "range": [0, tiffs.WHITE]},
        augmentation={
            **{"mean": [0.5] * count, "std": [0.25] * count},
            **{"saturation": 0, "hue": 0, "gray": 0},
        },
    )
    tree = tiffs.tree(tmp_path / "tree", 4)
    words = ["look", str(run), "--images", str(tree), "--sizes", "32x2", "--pixels", "32"]
    words += ["--out", str(tmp_path / "look.html")]
    for more in ([], ["--show", "mean", "--reference", str(tree)]):
        assert main([*words, *more]) == 0, capsys.readouterr().err
        assert "ant/00.tif" in (tmp_path / "look.html").read_text()
    assert main([*words, "--show", "6,1,1"]) == UsageError.exit_status
    assert "--show 6: images have 5 channels" in capsys.readouterr().err
