"""poa-ds stats: against NumPy over all pixels at once, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import stats
from poa_ds import cli
from poa_ds.data.loader import eval_batches
from poa_ds.data.places import open_folder
from poa_ds.recipe import checks, load
from tests.support import tiffs
from tests.support.shards import image


def found(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> dict:
    assert cli.main(["stats", *map(str, words), "--json", "--workers", "1"]) == status
    return json.loads(capsys.readouterr().out)


def test_mean_and_deviation_are_those_of_all_pixels(tmp_path: Path, capsys) -> None:
    shapes = [(40, 48), (24, 30), (16, 64)]
    images = [tiffs.numbers(n, *shapes[n % 3]) for n in range(40)]  # more than one block
    for number, numbers in enumerate(images):
        tiffs.write(tmp_path / "x" / f"{number}.tif", numbers)
    whole = np.concatenate([x.reshape(5, -1) for x in images], axis=1).astype(np.float64)
    about = found(capsys, tmp_path / "x")
    np.testing.assert_allclose(about["mean"], whole.mean(1), rtol=1e-12)
    np.testing.assert_allclose(about["std"], whole.std(1), rtol=1e-12)
    assert about["min"] == whole.min(1).tolist() and about["max"] == whole.max(1).tolist()
    np.testing.assert_allclose(about["percentiles"]["50"], np.median(whole, axis=1))
    assert about["images"] == 40 and about["numbers"] == "uint16"
    cut = np.clip(whole, 1000, 3000)
    about = found(capsys, tmp_path / "x", "--range", 1000, 3000)
    recipe = about["recipe"]
    assert recipe["data.channels"] == 5 and recipe["data.range"] == [1000, 3000]
    np.testing.assert_allclose(recipe["augmentation.mean"], (cut.mean(1) - 1000) / 2000, atol=6e-6)
    np.testing.assert_allclose(recipe["augmentation.std"], cut.std(1) / 2000, atol=6e-6)


def test_the_lines_can_be_pasted_and_damage_is_named(tmp_path: Path, capsys) -> None:
    tiffs.tree(tmp_path / "x", 4)
    assert cli.main(["stats", str(tmp_path / "x"), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "4 images of 5 channels of uint16" in out and "data.channels=5 data.range=[" in out
    whole = (tmp_path / "x" / "ant" / "00.tif").read_bytes()
    (tmp_path / "x" / "ant" / "00.tif").write_bytes(whole[:-4000])
    assert cli.main(["stats", str(tmp_path / "x"), "--workers", "1"]) == 1
    captured = capsys.readouterr()
    assert "3 images of 5 channels" in captured.out and "00.tif: " in captured.err


def test_what_it_prints_is_a_recipe_that_is_accepted_and_reads_the_images(
    tmp_path: Path, capsys
) -> None:
    tiffs.tree(tmp_path / "planes", 4)
    for number in range(4):
        stack = tmp_path / "pages" / f"{number}.tif"
        tiffs.write(stack, tiffs.numbers(number), planarconfig=None)
    Image.fromarray(image(1)).save(tmp_path / "x.png")
    (tmp_path / "list.txt").write_text("x.png\n")
    for place, more, measured in (
        ("planes", (), True),
        ("pages", ("--pages", "channels"), True),
        ("list.txt", (), False),
    ):
        words = found(capsys, tmp_path / place, *more)["recipe"]
        recipe = load.recipe(None, [f"{key}={value}" for key, value in words.items()])
        assert recipe.data.is_measured is measured
        folder = open_folder(str(tmp_path / place), recipe.data)
        [(images, _)] = eval_batches(folder, range(len(folder)), resize=8, crop=8, batch_size=9)
        assert images.shape[1] == recipe.data.channels
    assert stats.COLOURFUL == checks.COLOURFUL


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (10000, "10000"),
        (65535, "65535"),
        (1e6, "1000000"),
        (0, "0"),
        (12.5, "12.5"),
        (3e-5, "3e-05"),
    ],
)
def test_numbers_keep_their_zeros(number: float, text: str) -> None:
    assert stats._short(number) == text


def test_several_processes_find_the_same(tmp_path: Path, capsys) -> None:
    tiffs.tree(tmp_path / "x", 70)
    assert cli.main(["stats", str(tmp_path / "x"), "--json", "--workers", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == found(capsys, tmp_path / "x")


def test_what_is_refused(tmp_path: Path, capsys) -> None:
    tiffs.tree(tmp_path / "x", 2)
    Image.fromarray(image(1)).save(tmp_path / "x" / "colour.png")
    for words, status, message in (
        ([tmp_path / "none"], 2, "no such file or folder"),
        ([tmp_path / "x", "--range", "5", "5"], 2, "the first below the second"),
        ([tmp_path / "x"], 1, "images differ: 2 of 5 channels of uint16, 1 of 3 channels of uint8"),
    ):
        assert cli.main(["stats", *map(str, words), "--workers", "1"]) == status
        assert message in capsys.readouterr().err
