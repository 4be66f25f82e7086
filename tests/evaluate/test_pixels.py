"""What of an image is seen: any sides that whole patches fill, in embed and k-NN."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import poa_ds
from poa_ds.cli import main
from poa_ds.data.image.views import center_view, covering_view
from poa_ds.export.load import load
from poa_ds.system.errors import UsageError
from tests.export.test_folder import SMALL
from tests.support.shards import image, make_shards
from tests.support.teachers import RECIPE, make_teacher

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (50, 90), (90, 90), (3, 3)])
@pytest.mark.parametrize(("rows", "columns"), [(56, 98), (98, 56), (56, 56)])
def test_a_view_covers_its_sides(height: int, width: int, rows: int, columns: int) -> None:
    """Against PIL: enlarged or shrunk in proportion until no side is too short, then the middle."""
    photo = Image.fromarray(image(0, height, width))
    own = covering_view(torch.from_numpy(np.array(photo)).permute(2, 0, 1), rows, columns)
    scale = max(rows / height, columns / width)
    sides = [int(width * scale + 1e-9), int(height * scale + 1e-9)]
    resized = photo.resize(sides, Image.Resampling.BICUBIC)
    left, top = round((sides[0] - columns) / 2), round((sides[1] - rows) / 2)
    theirs = np.array(resized.crop((left, top, left + columns, top + rows)))
    assert own.shape == (3, rows, columns) and own.dtype == torch.uint8
    assert np.abs(own.permute(1, 2, 0).numpy().astype(int) - theirs.astype(int)).max() <= 2
    if rows == columns:
        whole = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
        assert torch.equal(own, center_view(whole, rows, rows))


def test_a_long_image_is_cut_before_it_covers() -> None:
    photo = torch.randint(0, 256, (3, 1, 20_000), dtype=torch.uint8)
    assert covering_view(photo, 224, 448).shape == (3, 224, 448)


BACKBONES = {
    "vit of patches of 14": (RECIPE["backbone"] | {"patch_size": 14}, 70, (28, 42), "32x2"),
    "swin": (SMALL["swin"], 64, (48, 32), "16x2"),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_features_of_images_that_are_not_square(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the extracted network on the very pixels; the folder of features says what was seen."""
    backbone, side, (rows, columns), size = BACKBONES[kind]
    crops = {"global_size": side, "local_count": 0}
    evaluation = {"crop": side, "resize": side, "sizes": ["all"]}
    run = make_teacher(tmp_path / "run", backbone=backbone, crops=crops, evaluation=evaluation)
    pixels = np.stack([image(number, rows, columns) for number in range(3)])
    (tmp_path / "tree").mkdir()
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / "tree" / f"{number}.png")
    words = ["embed", str(run), "--images", str(tmp_path / "tree"), "--sizes", size]
    words += ["--workers", "0", "--dtype", "fp32", "--what", "patches", "--crop"]
    assert main([*words, f"{rows}x{columns}", "--out", str(tmp_path / "out")]) == 0
    setting = json.loads((tmp_path / "out" / "embedding.json").read_text())["setting"]
    assert (setting["resize"], setting["crop"]) == ("covers", f"{rows}x{columns}")
    found = load_file(next((tmp_path / "out").glob("*.safetensors")))["features"]
    images = torch.from_numpy((pixels / np.float32(255) - MEAN) / STD).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = load(run, size).forward_features(images)
    if kind == "swin":  # the last map, every place of it four times
        wanted = wanted.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    else:
        wanted = wanted[:, 1:]
        assert wanted.shape[1] == 2 * 3
        capsys.readouterr()
        for wrong in (["30x42"], ["28x42", "--resize", "70"], ["70", "--resize", "56"]):
            assert main([*words, *wrong, "--out", str(tmp_path / "x")]) == UsageError.exit_status
        told = capsys.readouterr().err
        assert "30 is not a multiple of backbone.patch_size 14: 28 or 42 would be" in told
        assert "resized until it covers --crop 28x42" in told
        assert "--resize 56 is below the crop of 70 pixels" in told
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
    rows_of = poa_ds.embed(run, tmp_path / "tree", size, crop=f"{rows}x{columns}")
    with torch.no_grad():
        np.testing.assert_allclose(rows_of[size], load(run, size)(images).numpy(), atol=1e-4)


def test_knn_at_other_pixels_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_teacher(tmp_path / "run")
    bank, queries = (make_shards(tmp_path / name, n) for name, n in (("bank", 30), ("queries", 9)))
    words = ["eval", "knn", str(run), "--bank", str(bank.path), "--queries", str(queries.path)]
    words += ["--sizes", "32x2", "--workers", "0"]
    assert main([*words, "--crop", "40"]) == 0, capsys.readouterr().err
    row = json.loads((run / "knn.jsonl").read_text().splitlines()[-1])
    assert (row["protocol"]["resize"], row["protocol"]["crop"]) == (40, 40)
    assert main([*words, "--crop", "20"]) == UsageError.exit_status
    assert (
        "evaluation.crop 20 is not a multiple of backbone.patch_size 8" in capsys.readouterr().err
    )
