"""poa-ds eval rebase against what real imports of the same network say, each by itself."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.data.loader import eval_batches
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate import rebase_command
from poa_ds.evaluate.cka import Alike
from poa_ds.evaluate.features import Readout
from poa_ds.export.rebase import checked
from poa_ds.model.space import Subnet
from poa_ds.recipe import load
from poa_ds.recipe.backbone import backbone
from poa_ds.system.errors import UsageError
from tests.evaluate.test_cka import slow
from tests.support.shards import make_shards


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and a DINOv3 of timm's with random weights, imported as it is."""
    place = tmp_path_factory.mktemp("rebase")
    make_shards(place / "bank", 40)
    make_shards(place / "queries", 30, first=100)
    torch.manual_seed(0)
    size = {"img_size": 32, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}
    network = timm.create_model("vit_small_patch16_dinov3", **size)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_file(network.state_dict(), place / "w.safetensors")
    imported(place, "none", "0.5")
    return place


def imported(place: Path, way: str, scale: str) -> Path:
    out, words = place / f"{way}{scale}", ["--widths", "64,128", "--depths", "1,2"]
    words += ["--image-size", "32"]
    words += [] if way == "none" else ["--calibrate", str(place / "bank")]
    words += ["--rebase", way, "--input-scale", scale, "--out", str(out)]
    assert cli.main(["import", str(place / "w.safetensors"), *words]) == 0
    return out


def measured(place: Path, *words: str) -> int:
    where = ["--bank", str(place / "bank"), "--queries", str(place / "queries"), "--workers", "0"]
    return cli.main(["eval", "rebase", str(place / "none0.5"), *where, *words])


def tokens(run: Path, size: str, shards: ShardFolder) -> torch.Tensor:
    model, recipe, _ = load_teacher(run)
    sides = {"resize": recipe.evaluation.resize, "crop": recipe.evaluation.crop}
    [(images, _)] = eval_batches(shards, range(len(shards)), **sides, batch_size=100)
    with torch.no_grad():
        return Readout.of(recipe, "cpu").encoder(model, [Subnet.read(size)])(images)[0]


def test_every_cell_is_what_an_import_of_that_kind_says(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(place, "--sizes", "64x1,128x2", "--json") == 0
    cells = {
        (cell["size"], cell["way"], cell["input_scale"]): cell
        for cell in json.loads(capsys.readouterr().out)
    }
    assert len(cells) == 2 * 3 * 2
    queries = ShardFolder.open(place / "queries")
    original = tokens(place / "none0.5", "128x2", queries)
    for way, scale in (("rotate", "0.5"), ("sort", "1"), ("none", "1")):
        run = imported(place, way, scale)
        for size in ("64x1", "128x2"):
            wanted = slow(tokens(run, size, queries), original)
            cell = cells[size, way, float(scale)]
            assert cell["cka"] == pytest.approx(wanted, abs=1e-4), (way, scale, size)
    assert cells["128x2", "sort", 0.5]["cka"] == pytest.approx(1, abs=1e-5)
    one, other = (cells["64x1", "none", scale]["cka"] for scale in (0.5, 1.0))
    assert abs(one - other) > 1e-3  # the exponent is another network


def test_the_table_has_a_line_per_size_and_a_column_per_variant(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "none0.5").rglob("*")}
    assert measured(place, "--sizes", "64x2,128x2", "--input-scales", "0.5") == 0
    told = capsys.readouterr().out.splitlines()
    head = next(line for line in told if line.startswith("size"))
    assert head.split() == "size none 0.5 sort 0.5 rotate 0.5".split()
    [row] = [line.split() for line in told if line.startswith("128x2")]
    assert len(row) == 7 and row[1] == row[3] and row[2] == "1.000"
    assert {path: path.stat().st_mtime_ns for path in (place / "none0.5").rglob("*")} == before


def test_cka_looks_at_so_many_queries_evenly_spread(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, add = [], Alike.add

    def noted(self: Alike, *pair: torch.Tensor) -> None:
        seen.append(len(pair[0]))
        add(self, *pair)

    monkeypatch.setattr(Alike, "add", noted)
    monkeypatch.setattr(rebase_command, "ALIKE_IMAGES", 20)  # of 30
    assert measured(place, "--sizes", "64x1", "--input-scales", "0.5", "--json") == 0
    assert sum(seen) == 3 * 20  # in three bases


def test_wrong_use_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        measured(place, "--input-scales", "2")
    assert "between 0 and 1" in capsys.readouterr().err
    recipe = load.recipe(Path("photos_swin"))
    with pytest.raises(UsageError, match="RUN is a swin: another basis is there for plain ViTs"):
        checked(backbone(recipe), "RUN")
