"""--test of knn, linear and logistic: other sets by what was learnt, among their own classes."""

import argparse
from pathlib import Path

import pytest
import torch

from data_tools.shard import write
from data_tools.sources import Sample
from poa_ds.cli import main
from poa_ds.data.image.pixels import png
from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.feature_sets import FeatureSet
from poa_ds.evaluate.logistic.fit import fit
from poa_ds.evaluate.measured import named_place
from tests.support.shards import image, make_shards, options
from tests.support.teachers import make_teacher


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run, images of three classes to learn from and to measure on, and some of two of them."""
    make_shards(tmp_path / "train", 40)
    make_shards(tmp_path / "val", 15, first=100)
    few = [
        Sample(f"image_{n}", "made", png(image(n)), (n % 3) - 1) for n in range(200, 221) if n % 3
    ]
    about = {"classes": ("bee", "cat"), "rejected": (), "tool": "waves", "source": "waves"}
    write(tmp_path / "two", few, args=options(), **about)
    return make_teacher(tmp_path / "run")


def measured(run: Path, kind: str, *more: str) -> dict[str, score_rows.ScoreRow]:
    """Name -> row of the command with two other sets, one of which is the validation images."""
    places = {"train": run.parent / "train", "val": run.parent / "val"}
    names = {"knn": ("bank", "queries")}.get(kind, ("train", "val"))
    words = [f"--{name}={place}" for name, place in zip(names, places.values(), strict=True)]
    words += [f"--test=again={places['val']}", f"--test=two={run.parent / 'two'}"]
    before = len(score_rows.read(run / "evaluations.jsonl"))
    assert main(["eval", kind, str(run), "--sizes", "32x2", "--workers", "0", *words, *more]) == 0
    found = score_rows.read(run / "evaluations.jsonl")[before:]
    return {row.name: row for row in found}


@pytest.mark.parametrize("kind", ["knn", "linear", "logistic"])
def test_the_same_images_under_another_name_give_the_same_numbers(run: Path, kind: str) -> None:
    more = {"linear": ("--crops=centre", "--steps=6", "--batch=8"), "logistic": ("--c=1",)}
    rows = measured(run, kind, *more.get(kind, ()), "--only-classes")
    own = [row for row in rows.values() if row.set == "val"]
    if kind == "knn":
        [whole] = results.read(run / "knn.jsonl")
        assert rows["knn_top1_again"].value == whole.knn["32x2"][20]
    for row in own:
        suffix = "_best_on_val" * (row.chosen_by == "val")
        again = rows[f"{kind}_{row.metric}_again{suffix}"]
        assert (again.value, again.error) == (row.value, row.error)
        assert again.protocol == row.protocol
        two = rows[f"{kind}_{row.metric}_two{suffix}"]
        assert two.protocol["val"]["answers"] == 2 and two.protocol["val"]["images"] == 14
        assert two.protocol_id != row.protocol_id


def test_answers_are_among_the_classes_of_a_set(run: Path) -> None:
    """By hand: the classifier of three classes again, whose first score may not win."""
    alone = measured(run, "logistic", "--c=1", "--only-classes", "--keep-features")
    every = measured(run, "logistic", "--c=1", "--keep-features")
    sets = map(FeatureSet.at, (run / "features" / "step00000003").iterdir())
    by_rows = {each.setting["rows"]: each for each in sets}
    x, labels = by_rows[40].rows("32x2")
    other, wanted = by_rows[14].rows("32x2")
    scores = fit(x, labels, 3, 1.0).scores(other)
    right = scores[:, 1:].argmax(1) == wanted
    name = "logistic_top1_two"
    assert alone[name].value == pytest.approx(100 * float(right.double().mean()))
    free = scores.argmax(1) == wanted + 1
    assert every[name].value == pytest.approx(100 * float(free.double().mean()))
    assert "answers" not in every[name].protocol["val"]
    assert torch.equal(scores.argmax(1)[free], wanted[free] + 1)


def test_what_is_no_set_is_named(run: Path, capsys: pytest.CaptureFixture) -> None:
    for text in ("shards", "val=x", "=x", "v-2=x", "v2="):
        with pytest.raises(argparse.ArgumentTypeError, match="is not NAME=PLACE"):
            named_place(text)
    train, val = (str(run.parent / name) for name in ("train", "val"))
    words = ["eval", "logistic", str(run), "--train", train, "--val", val, "--c", "1"]
    for more, named in (
        (["--only-classes"], "give one"),
        ([f"--test=a={val}", f"--test=a={val}"], "--test a= is given twice"),
        ([f"--test=a={train}"], "hold the same images"),
    ):
        assert main([*words, "--workers", "0", "--sizes", "32x2", *more]) == 2
        assert named in capsys.readouterr().err
