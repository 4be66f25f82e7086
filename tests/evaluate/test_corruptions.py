"""--corruptions of knn, linear and logistic: errors by kind, their mean, and mCE."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from poa_ds.cli import main
from poa_ds.evaluate import corruptions, score_rows, score_table, worth
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.system.errors import UsageError, UserError
from tests.support.shards import CLASSES, image, make_shards
from tests.support.teachers import make_teacher


def of_set(name: str, value: float, error: float = 1.0, metric: str = "top1") -> ScoreRow:
    protocol = {"val": {"images": 10, "of": 10, "index_sha256": name}, "precision": "fp32"}
    about = {"chosen_by": "", "setting": {}, "seconds": 1.0, "protocol": protocol, "torch": "2"}
    return ScoreRow("knn", 3, "32x2", metric, value, error, name, **about)


def arguments(root: Path, reference: object = None) -> argparse.Namespace:
    path = None
    if reference is not None:
        path = root / "reference.json"
        path.write_text(json.dumps(reference))
    return argparse.Namespace(corruptions=root, reference=path)


def test_errors_and_mce_of_five_rows_by_hand(tmp_path: Path) -> None:
    """Two kinds that the reference knows at two levels, and one of the validation images."""
    rows = [of_set("val", 90.0)]
    for name, value, error in (
        ("fog/1", 80, 1),
        ("fog/2", 60, 3),
        ("snow/1", 50, 2),
        ("snow/2", 30, 2),
    ):
        rows.append(of_set(f"corrupted/{name}", value, error))
    args = arguments(tmp_path, {"fog": 60, "snow": 80})
    found = {row.name: row for row in corruptions.gathered(rows, args)}
    wanted = {  # errors: 20 and 40 of fog, 50 and 70 of snow
        "knn_top1": (90, 1),
        "knn_error_fog_corrupted": (30, 2),
        "knn_error_snow_corrupted": (60, 2),
        "knn_mean_error_corrupted": (45, 2),
        "knn_top1_corrupted": (55, 2),
        "knn_mce_corrupted": (100 * (30 / 60 + 60 / 80) / 2, 100 * (2 / 60 + 2 / 80) / 2),
    }
    for name, numbers in wanted.items():
        assert (found[name].value, found[name].error) == pytest.approx(numbers), name
    assert set(found) == set(wanted)
    mce = found["knn_mce_corrupted"].protocol
    assert mce["val"]["images"] == 40 and mce["reference"]["errors"] == {"fog": 60, "snow": 80}
    assert found["knn_error_fog_corrupted"].protocol["val"]["images"] == 20
    assert len({row.protocol_id for row in found.values()}) == 5  # top1 and mean_error share one


def test_mce_of_imagenet_c_is_over_its_fifteen_kinds_at_five_levels(tmp_path: Path) -> None:
    """AlexNet's own errors give 100; a sixteenth kind is told alone."""
    args = arguments(tmp_path)
    errors = corruptions.ALEXNET | {"spatter": 10.0}
    rows = [
        of_set(f"corrupted/{kind}/{level}", 100 - error)
        for kind, error in errors.items()
        for level in range(1, 6)
    ]
    found = {row.name: row.value for row in corruptions.gathered(rows, args)}
    assert found["knn_mce_corrupted"] == pytest.approx(100)
    assert len(corruptions.ALEXNET) == 15 and found["knn_error_spatter_corrupted"] == 10
    mean = sum(corruptions.ALEXNET.values()) / 15
    assert found["knn_mean_error_corrupted"] == pytest.approx(mean)
    for some in (rows[5:], [row for row in rows if not row.set.endswith("/5")]):
        assert "knn_mce_corrupted" not in {row.name for row in corruptions.gathered(some, args)}


def test_the_screen_has_a_line_per_kind_and_a_column_per_size(tmp_path: Path) -> None:
    one = [of_set("val", 90.0), of_set("corrupted/fog/1", 80)]
    rows = [*one, *(replace(row, size="48x3", value=row.value - 10) for row in one)]
    shown = score_table.table(corruptions.gathered(rows, arguments(tmp_path))).splitlines()
    assert [line.split()[0] for line in shown[1:4]] == ["size", "32x2", "48x3"]
    assert shown[4].split() == ["32x2", "48x3"]
    fog = "knn_error_fog_corrupted 20.00 ± 1.0 % 30.00 ± 1.0 %"
    assert shown[5].split() == fog.split() and len(shown) == 8


def test_no_size_is_judged_by_an_error(tmp_path: Path) -> None:
    rows = corruptions.gathered([of_set("corrupted/fog/1", 80)], arguments(tmp_path))
    assert worth.of_scores(rows, 3, "knn_top1_corrupted")["32x2"].percent == 80
    with pytest.raises(UsageError, match="less is better"):
        worth.of_scores(rows, 3, "knn_error_fog_corrupted")
    with pytest.raises(UsageError, match=r"there are knn, knn_top1_corrupted$"):
        worth.of_scores(rows, 3, "linear_top1")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Images to learn from and to measure on; corrupted ones, the last level a tree of files."""
    make_shards(tmp_path / "train", 40)
    make_shards(tmp_path / "val", 15, first=100)
    for number, name in enumerate(("fog/1", "fog/2", "snow/1")):
        make_shards(tmp_path / "C" / name, 10, first=200 + 10 * number)
    for number in range(300, 309):
        folder = tmp_path / "C" / "snow" / "2" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(number)).save(folder / f"{number}.png")
    return make_teacher(tmp_path / "run")


@pytest.mark.parametrize("kind", ["knn", "linear", "logistic"])
def test_each_command_finds_what_test_finds_on_every_set(
    run: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    root, names = run.parent / "C", ("bank", "queries") if kind == "knn" else ("train", "val")
    own = [f"--{a}={run.parent / b}" for a, b in zip(names, ("train", "val"), strict=True)]
    own += {"linear": ["--crops=centre", "--steps=6", "--batch=8"], "logistic": ["--c=1"]}.get(
        kind, []
    )
    places = {"f1": "fog/1", "f2": "fog/2", "s1": "snow/1", "s2": "snow/2"}
    own += [f"--test={name}={root / place}" for name, place in places.items()]
    reference = arguments(run.parent, {"fog": 80, "snow": 60}).reference
    own += [f"--corruptions={root}", f"--reference={reference}"]
    assert main(["eval", kind, str(run), "--sizes=32x2", "--workers=0", *own]) == 0
    assert "corruptions: 2 kinds x 2 levels, 39 images" in capsys.readouterr().err
    rows = [r for r in score_rows.read(run / "evaluations.jsonl") if r.chosen_by != "val"]
    found = {row.name: row.value for row in rows}
    error = {name: 100 - found[f"{kind}_top1_{name}"] for name in places}
    fog, snow = (error["f1"] + error["f2"]) / 2, (error["s1"] + error["s2"]) / 2
    assert found[f"{kind}_error_fog_corrupted"] == pytest.approx(fog)
    assert found[f"{kind}_error_snow_corrupted"] == pytest.approx(snow)
    mce = 100 * (fog / 80 + snow / 60) / 2
    assert found[f"{kind}_mce_corrupted"] == pytest.approx(mce)
    assert not [row for row in rows if "/" in row.set]


def test_what_is_no_such_folder_or_reference_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folders KIND/LEVEL"):
        corruptions.places(arguments(tmp_path))
    (tmp_path / "fog" / "1").mkdir(parents=True)
    (tmp_path / "snow" / "2").mkdir(parents=True)
    with pytest.raises(UserError, match="fog has levels 1, snow 2: all must have the same"):
        corruptions.places(arguments(tmp_path))
    (tmp_path / "fog" / "1").rename(tmp_path / "fog" / "2")
    assert [*corruptions.places(arguments(tmp_path))] == ["corrupted/fog/2", "corrupted/snow/2"]
    for reference, said in (
        ([], "not an object"),
        ({"fog": "much"}, "fog is much"),
        ({"fog": 0}, "fog is 0"),
        ({"fog": True}, "fog is True"),
        ({"rain": 5}, r"has kinds that .* lacks: \['rain'\]"),
    ):
        with pytest.raises(UserError, match=said):
            corruptions.places(arguments(tmp_path, reference))
    with pytest.raises(UserError, match="No such file"):
        corruptions.places(arguments(tmp_path / "none"))
    args = argparse.Namespace(corruptions=None, reference=tmp_path)
    with pytest.raises(UsageError, match="--reference is for --corruptions"):
        corruptions.places(args)
