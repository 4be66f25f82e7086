"""ReaL's labels: any of the classes that a list names is right; lists go by the images' names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from poa_ds.cli import main
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate import score_rows
from poa_ds.evaluate.accuracies import accuracies, best_first
from poa_ds.evaluate.feature_sets import FeatureSet
from poa_ds.evaluate.knn_protocol import Split
from poa_ds.evaluate.logistic.fit import fit
from poa_ds.evaluate.neighbours import Answers
from poa_ds.evaluate.real import Real, of_answers
from poa_ds.system.errors import UserError
from tests.support.shards import make_shards
from tests.support.teachers import make_teacher

WORDS = {
    "knn": (),
    "linear": ("--crops=centre", "--steps=6", "--batch=8"),
    "logistic": ("--c=1",),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_shards(tmp_path / "train", 40)
    make_shards(tmp_path / "val", 15, first=100)
    return make_teacher(tmp_path / "run")


def written(path: Path, lists: object) -> Path:
    path.write_text(json.dumps(lists))
    return path


def measured(run: Path, kind: str, lists: object, *more: str) -> dict[str, score_rows.ScoreRow]:
    """Name -> row of the command with these lists."""
    names = ("bank", "queries") if kind == "knn" else ("train", "val")
    places = [f"--{a}={run.parent / b}" for a, b in zip(names, ("train", "val"), strict=True)]
    real = written(run.parent / "real.json", lists)
    before = len(score_rows.read(run / "evaluations.jsonl"))
    words = ["eval", kind, str(run), "--sizes=32x2", "--workers=0", *places, *WORDS[kind]]
    assert main([*words, f"--real={real}", *more]) == 0
    return {row.name: row for row in score_rows.read(run / "evaluations.jsonl")[before:]}


def test_any_listed_class_is_right_by_hand(tmp_path: Path) -> None:
    """Five images, whose names stand in another order than their lists; the fourth has none."""
    real = Real.read(written(tmp_path / "r.json", [[0], [1, 2], [2], [], [0, 1]]))
    keys = [f"{shard}/im_{n}.JPEG" for shard, n in zip("bbaab", (2, 0, 1, 4, 3), strict=True)]
    right = real.right(keys, torch.tensor([0, 2, 3]), 4, "val")  # their classes among four
    lists = [{3}, {0}, {2, 3}, {0, 2}, set()]
    assert [{*row.nonzero()[:, 0].tolist()} for row in right] == lists
    rows = real.of_rows(right, torch.tensor([3, 0, 2, 0, 1]))
    assert rows.tolist() == [0, 1, 2, 3]
    scores = torch.nn.functional.one_hot(torch.tensor([2, 0, 3, 3, 1]), 4).float()
    found = accuracies(best_first(scores)[rows], right[rows], 4)
    assert found["top1"].percent == 50 and found["top1"].images == 4


@pytest.mark.parametrize("kind", WORDS)
def test_the_images_own_classes_as_lists_give_top1_again(run: Path, kind: str) -> None:
    folder = ShardFolder.open(run.parent / "val")
    assert sorted(map(folder.key, range(15))) != [*map(folder.key, range(15))]  # they are shuffled
    own = [[n % 3] for n in range(100, 115)]
    same = measured(run, kind, own)
    [name] = [n for n in same if n.startswith(f"{kind}_top1_real") and "best" not in n]
    if kind != "knn":
        row = same[f"{kind}_top1"]
        assert (same[name].value, same[name].error) == (row.value, row.error)
    if kind == "linear":  # as logistic does
        return
    every = measured(run, kind, [[0, 1, 2] if n % 2 else [] for n in range(15)])
    assert every[name].value == 100
    val = every[name].protocol["val"]
    assert (val["images"], val["of"], val["real"]["empty"]) == (7, 15, 8)
    assert every[name].protocol_id != same[name].protocol_id
    if kind == "knn":
        [whole] = [json.loads(line) for line in (run / "knn.jsonl").read_text().splitlines()][:1]
        assert same[name].value == whole["knn"]["32x2"]["20"]


def test_an_image_that_gave_way_to_another_is_not_judged_by_its_list(run: Path) -> None:
    folder = ShardFolder.open(run.parent / "val")
    split = Split(folder, np.arange(15), torch.arange(4))
    real = Real.read(written(run.parent / "real.json", [[n % 3] for n in range(100, 115)]))
    first = torch.from_numpy(folder.labels)[:, None].expand(15, 5).clone()
    first[4] = (first[4] + 1) % 3
    right = {20: torch.ones(15, dtype=torch.bool)}
    for damaged, percent, images in (((), 1400 / 15, 15), ((folder.name(4),), 100, 14)):
        answered = Answers(right, first={20: first}, damaged=frozenset(damaged))
        [found], record = of_answers(real, split, [answered], 20)
        assert (found["top1"].percent, record["images"]) == (pytest.approx(percent), images)


def test_what_a_classifier_answers_is_looked_up_in_the_lists(run: Path) -> None:
    lists = [[n % 3, (n + 1) % 3] if n % 3 else [(n + 1) % 3] for n in range(100, 115)]
    rows = measured(run, "logistic", lists, "--keep-features")
    sets = map(FeatureSet.at, (run / "features" / "step00000003").iterdir())
    train, val = sorted(sets, key=lambda one: -one.setting["rows"])
    answers = fit(*train.rows("32x2"), 3, 1.0).scores(val.rows("32x2")[0]).argmax(1).tolist()
    numbers = [int(key[-3:]) - 100 for key in val.keys()]
    right = [answer in lists[number] for answer, number in zip(answers, numbers, strict=True)]
    assert rows["logistic_top1_real"].value == pytest.approx(100 * sum(right) / 15)


def test_lists_in_another_order_are_warned_of(run: Path, capsys: pytest.CaptureFixture) -> None:
    measured(run, "knn", [[(n + 1) % 3] for n in range(100, 115)])
    assert "only 0% of the images have their own class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"a": 1}, "not a list with a list of classes"),
        ([], "not a list with a list of classes"),
        ([[0], 3], "entry 1 is 3, not a list of numbers"),
        ([["ant"]], "entry 0 is"),
        ([[True]], "entry 0 is"),
        ([[-1]], "entry 0 is"),
    ],
)
def test_what_is_no_list_of_lists_is_said(tmp_path: Path, lists: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Real.read(written(tmp_path / "r.json", lists))


def test_lists_of_other_images_are_said(run: Path, capsys: pytest.CaptureFixture) -> None:
    places = [f"--{name}={run.parent / name}" for name in ("train", "val")]
    words = ["eval", "logistic", str(run), "--sizes=32x2", "--workers=0", "--c=1", *places]
    path = run.parent / "real.json"
    for lists, said in (
        ([[0]] * 14, "has 14 lists"),
        ([[3]] * 15, "names class 3"),
        ([[]] * 15, "no class for any"),
    ):
        written(path, lists)
        assert main([*words, f"--real={path}"]) == 1
        assert said in capsys.readouterr().err
    assert main([*words, f"--real={path}", f"--test=real={run.parent / 'val'}"]) == 2
    assert main([*words, f"--real={run / 'none.json'}"]) == 1
    with pytest.raises(UserError, match="images of one name"):
        Real.read(written(path, [[0], [0]])).right(["a/x.png", "b/x.png"], torch.arange(3), 3, "v")
