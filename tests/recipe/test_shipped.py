"""Recipes and DeepSpeed files by name, from any folder."""

from pathlib import Path

import pytest

from poa_ds.cli import main
from poa_ds.recipe import ds_json, load, shipped
from poa_ds.system.errors import UsageError

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "ds_configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_found_by_its_name_and_as_the_documents_write_it(file: Path) -> None:
    wanted = load.recipe(file)
    for given in (file.stem, file.name, f"ds_configs/{file.name}"):
        assert load.recipe(Path(given)) == wanted


def test_a_deepspeed_file_is_found_by_its_name() -> None:
    for given in ("zero3", "zero3.json", "ds_configs/zero3.json"):
        assert ds_json.read(Path(given)) == {"zero_optimization": {"stage": 3}}


def test_a_file_of_that_name_goes_before_the_shipped_one_a_folder_does_not() -> None:
    Path("vit_s16_in1k").mkdir()
    assert load.recipe(Path("vit_s16_in1k")).mlflow.run_name == "vit_s16"
    Path("photos.yaml").write_text("seed: 7")
    assert load.recipe(Path("photos.yaml")).seed == 7
    assert load.recipe(Path("photos")).seed == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("vit_s16", "did you mean vit_s16_in1k or"),
        ("photo.yaml", "did you mean photos"),
        ("my/photos.yaml", "my/photos.yaml: no such file"),
        ("zzzz", "shipped: cifar10, cifar10_dspnet"),
        ("zero2", "nor a shipped one"),  # a DeepSpeed file is no recipe
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(given: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load.recipe(Path(given))
    with pytest.raises(UsageError, match=r"zeros.*did you mean zero"):
        ds_json.read(Path("zeros"))


def test_recipes_lists_every_shipped_file_in_a_line_of_its_own(
    capsys: pytest.CaptureFixture,
) -> None:
    assert main(["recipes"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    told = dict(line for line in lines if len(line) == 2)
    assert {file.stem for file in RECIPES} <= told.keys()
    assert told["vit_l16_in1k"].startswith("ViT-L/16 on ImageNet-1K: 143 sizes from 384x12")
    assert told["zero2"] == '{ "zero_optimization": {"stage": 2} }'
    for name in ("photos.yaml", "zero2.json"):  # every name that was listed
        assert main(["recipes", Path(name).stem]) == main(["recipes", name]) == 0
        assert capsys.readouterr().out == 2 * (shipped.FOLDER / name).read_text()


def test_a_file_that_is_no_text_is_named(capsys: pytest.CaptureFixture) -> None:
    Path("odd.yaml").write_bytes(b"\x7fELF\xd0\xd0")
    assert main(["recipes", "odd.yaml"]) == 2
    assert "recipe odd.yaml: 'utf-8' codec" in capsys.readouterr().err
    for read in (load.recipe, ds_json.read):
        with pytest.raises(UsageError, match=r"/dev/zero has more than 1,000,000 characters"):
            read(Path("/dev/zero"))
