"""Classes by name: what is measured may have some that are not learnt from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.shard import write
from data_tools.sources import Sample
from poa_ds.cli import main
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.classes import UNKNOWN, known, matched, record
from poa_ds.evaluate.finetune.accuracy import counted
from poa_ds.evaluate.finetune.images import Asked, measured_on
from poa_ds.evaluate.real import Real
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.system.errors import UserError
from tests.evaluate.test_finetune import made
from tests.support.shards import make_shards, options
from tests.support.teachers import make_teacher

ODD = ("dog", "cat", "bee", "eel", "ant")  # two of which are not learnt from
WORDS = {
    "knn": (),
    "linear": ("--crops=centre", "--steps=6", "--batch=8"),
    "logistic": ("--c=1",),
}


def test_classes_are_those_of_the_same_name_and_others_an_error_or_unknown() -> None:
    own = ("dog", "bee", "ant")
    assert matched(own[1:], "val", ("ant", "bee"), "train").tolist() == [1, 0]
    with pytest.raises(UserError, match="val has 1 classes that train lacks: dog; --drop-unknown"):
        matched(own, "val", ("ant", "bee"), "train")
    numbers = matched(own, "val", ("ant", "bee"), "train", drop=True)
    assert numbers.tolist() == [UNKNOWN, 1, 0]
    labels = torch.tensor([0, 2, 1, 0, 0])
    assert known(labels, numbers, "val").tolist() == [False, True, True, False, False]
    assert record(labels, numbers) == {"unknown_classes": {"classes": 1, "images": 3}}
    assert record(labels, torch.tensor([0, 1, 2])) == {}
    with pytest.raises(UserError, match="val has no class of train, but dog, eel, fox and 1 more"):
        matched(("dog", "eel", "fox", "gnu"), "val", ("ant",), "train", drop=True)
    with pytest.raises(UserError, match="val has no image of a class that is learnt from"):
        known(torch.tensor([0, 0]), numbers, "val")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; `odd` has images of two classes more than `train`, `even` those of the others."""
    root = tmp_path_factory.mktemp("classes")
    make_shards(root / "train", 40)
    odd = make_shards(root / "odd", 25, first=100, classes=ODD)
    numbers = {1: 0, 2: 1, 4: 2}  # of cat, bee and ant
    samples = [
        Sample(odd.key(row), odd.key(row), odd.read(row), numbers[label])
        for row, label in enumerate(odd.labels.tolist())
        if label in numbers
    ]
    even = {"classes": ("cat", "bee", "ant"), "rejected": (), "tool": "waves", "source": "waves"}
    write(root / "even", samples, args=options(), **even)
    return make_teacher(root / "run")


def measured(run: Path, kind: str, val: str, *more: str) -> tuple[int, list[ScoreRow]]:
    """(exit status, what the command added); of k-NN also the file of all labels."""
    bank, queries = ("bank", "queries") if kind == "knn" else ("train", "val")
    places = (f"--{bank}={run.parent / 'train'}", f"--{queries}={run.parent / val}")
    before = len(score_rows.read(run / "evaluations.jsonl"))
    words = ["eval", kind, str(run), "--sizes=32x2", "--workers=0", *places, *WORDS[kind], *more]
    return main(words), score_rows.read(run / "evaluations.jsonl")[before:]


@pytest.mark.parametrize("kind", WORDS)
def test_without_unknown_classes_accuracies_are_those_of_the_other_images(
    run: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    assert measured(run, kind, "odd")[0] == 1
    assert "has 2 classes that " in (said := capsys.readouterr().err) and "dog, eel; --drop" in said
    more = (f"--test=v2={run.parent / 'odd'}", "--only-classes", "--drop-unknown-classes")
    status, found = measured(run, kind, "odd", *more)
    assert status == 0
    status, wanted = measured(run, kind, "even", f"--test=v2={run.parent / 'even'}")
    assert status == 0 and found and len(found) == len(wanted)
    for row, other in zip(found, wanted, strict=True):
        assert (row.name, row.value, row.error) == (other.name, other.value, other.error)
        assert row.protocol["val"]["images"] == 15 and row.protocol["val"]["of"] == 25
        assert row.protocol["val"]["unknown_classes"] == {"classes": 2, "images": 10}
        assert "unknown_classes" not in other.protocol["val"]
    if kind == "knn":
        every = results.read(run / "knn.jsonl")
        assert every[0].knn == every[1].knn
        assert every[0].protocol["queries"]["unknown_classes"]["images"] == 10
    else:
        assert "10 of 2 unknown classes left out" in capsys.readouterr().out


def test_lists_of_right_classes_leave_out_those_that_are_not_learnt_from(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps([[0], [0, 1], [2]]))
    right = Real.read(tmp_path / "r.json").right(list("abc"), torch.tensor([UNKNOWN, 1, 0]), 2, "")
    assert right.tolist() == [[False, False], [False, True], [True, False]]


def test_a_fine_tuned_network_is_measured_on_images_of_its_classes(run: Path) -> None:
    train, odd = (ShardFolder.open(run.parent / name) for name in ("train", "odd"))
    with pytest.raises(UserError, match=r"has 2 classes that .* lacks: dog, eel"):
        measured_on(odd, train)
    asked = measured_on(odd, train, drop=True)
    assert asked.record()["unknown_classes"] == {"classes": 2, "images": 10}
    assert [ODD[odd.labels[row]] for row in asked.numbers] == [
        name for name in (ODD[label] for label in odd.labels) if name not in ("dog", "eel")
    ]
    every = Asked(odd, np.arange(25), asked.classes, {})  # as where one stands for a damaged one
    recipe = made(run.parent, drop_unknown_classes=True)
    assert recipe.evaluation.drop_unknown_classes
    found = [_counts(recipe, one) for one in (asked, every)]
    assert torch.equal(*(counts.images for counts in found)) and found[0].images.tolist() == [5] * 3
    assert torch.equal(*(counts.right for counts in found))


def _counts(recipe: object, asked: Asked) -> object:
    from poa_ds.evaluate.features import Readout
    from poa_ds.model.classifier import Classified
    from poa_ds.recipe.backbone import backbone

    torch.manual_seed(0)
    network = Classified(backbone(recipe), 3).eval()
    return counted(network, asked, recipe.evaluation, Readout.of(recipe, "cpu"))
