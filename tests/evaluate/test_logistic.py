"""Logistic regression against scikit-learn, differences, and what it must refuse."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from poa_ds.cli import main
from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.logistic import fit as logistic
from poa_ds.evaluate.logistic.command import Found, score
from poa_ds.evaluate.logistic.fit import choose, fit, objective
from poa_ds.evaluate.measured import Measured
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.evaluate.split import drawn, few
from poa_ds.system.errors import UsageError
from tests.support.shards import make_shards
from tests.support.teachers import make_teacher

CLASSES = 3


def clouds(count: int, *, apart: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 5) features of three classes that overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = apart * torch.eye(CLASSES, 5, dtype=torch.float64)
    noise = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return centres[labels] + noise * torch.tensor([1, 1, 1, 3, 0.2]).double(), labels


@pytest.mark.slow  # scikit-learn takes seconds to import
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_it_finds_what_scikit_learn_finds(c: float) -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, labels = clouds(300)
    wanted = sklearn.LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(x.numpy(), labels.numpy())
    found = fit(x, labels, CLASSES, c)
    assert found.converged
    scores = x @ found.weight[:, :-1].T + found.weight[:, -1]
    probabilities = wanted.predict_proba(x.numpy())
    np.testing.assert_allclose(scores.softmax(1).numpy(), probabilities, atol=2e-3)
    theirs = torch.from_numpy(np.c_[wanted.coef_, wanted.intercept_])
    assert found.objective <= float(objective(theirs, x, labels, c)) * (1 + 1e-5)


def test_the_objective_counts_no_intercept_and_its_minimum_is_flat() -> None:
    x, labels = clouds(30)
    weight = torch.randn(CLASSES, 6, dtype=torch.float64)
    by_hand = sum(
        -torch.log_softmax(weight[:, :-1] @ x[i] + weight[:, -1], 0)[labels[i]] for i in range(30)
    )
    by_hand = 0.7 * by_hand + 0.5 * sum(w**2 for w in weight[:, :-1].flatten())
    torch.testing.assert_close(objective(weight, x, labels, 0.7), by_hand)
    found = fit(x, labels, CLASSES, 0.7).weight
    for step in (1e-4, -1e-4):
        for place in range(found.numel()):
            moved = found.flatten().clone()
            moved[place] += step
            other = objective(moved.view_as(found), x, labels, 0.7)
            assert other > objective(found, x, labels, 0.7) - 1e-6


def test_c_is_chosen_on_rows_that_are_not_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clouds(90)
    learnt, measured = [], []
    own, percent = logistic.fit, logistic.Fit.percent
    monkeypatch.setattr(logistic, "fit", lambda x, *a, **k: (learnt.append(x), own(x, *a, **k))[1])
    monkeypatch.setattr(
        logistic.Fit, "percent", lambda s, x, y: (measured.append(x), percent(s, x, y))[1]
    )
    c, best = choose(x, labels, CLASSES, seed=0, grid=(1e-3, 1.0))
    assert len(learnt) == len(measured) == 2 and 0 <= best <= 100 and c in (1e-3, 1.0)
    for a, b in zip(learnt, measured, strict=True):
        assert len(a) == 81 and len(b) == 9 and not (a[:, None] == b).all(2).any()
    with pytest.raises(ValueError, match="no class has two"):
        choose(x[:3], labels[:3], CLASSES, seed=0)


def test_a_subset_has_its_share_of_each_class_and_is_part_of_a_larger_one() -> None:
    labels = torch.tensor([0] * 40 + [1] * 4 + [2])
    small, large = (drawn(labels, share, seed=3) for share in (0.1, 0.5))
    assert [int(small[labels == c].sum()) for c in range(3)] == [4, 1, 1]
    assert [int(large[labels == c].sum()) for c in range(3)] == [20, 2, 1]
    assert (large | ~small).all() and not torch.equal(small, drawn(labels, 0.1, seed=4))
    assert int(drawn(labels, 0.1, seed=3, leaving=1)[labels == 2].sum()) == 0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run, and shards of training and validation images beside it."""
    make_shards(tmp_path / "train", 40)
    make_shards(tmp_path / "val", 15, first=100)
    return make_teacher(tmp_path / "run")


def words(run: Path, *more: object) -> list[str]:
    places = ("--train", run.parent / "train", "--val", run.parent / "val", "--workers", 0)
    return [str(word) for word in ("eval", "logistic", run, *places, *more)]


@pytest.mark.slow  # scikit-learn
def test_the_command_measures_every_size(run: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = ("--sizes", "32x2,48x3", "--keep-features")
    assert main(words(run, *sizes, "--c", 10, "--json")) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["size"], row["name"]) for row in rows] == [
        (size, f"logistic_{metric}")
        for size in ("32x2", "48x3")
        for metric in ("top1", "mean_per_class")
    ]
    train, val = sorted((run / "features" / "step00000003").iterdir(), key=rows_of, reverse=True)
    train, val = (load_file(folder / "w0048_d03.safetensors") for folder in (train, val))
    sklearn = pytest.importorskip("sklearn.linear_model")
    other = sklearn.LogisticRegression(C=10, tol=1e-8, max_iter=5000)
    other.fit(train["features"].astype(np.float64), train["labels"])
    wanted = 100 * other.score(val["features"].astype(np.float64), val["labels"])
    assert rows[2]["value"] == pytest.approx(wanted, abs=100 / 15 + 1e-6)  # one on a border
    assert rows[2]["setting"] == {"c": 10.0, "held_out": None, "converged": True}
    assert rows[2]["chosen_by"] == "given" and rows[2]["protocol"]["train"]["images"] == 40


def rows_of(folder: Path) -> int:
    return json.loads((folder / "embedding.json").read_text())["setting"]["rows"]


def of_top1(run: Path) -> list[ScoreRow]:
    rows = score_rows.read(run / "evaluations.jsonl")
    return [row for row in rows if row.metric.startswith("top1")]


def test_rows_go_to_the_run_and_sizes_are_judged_by_them(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(words(run, "--sizes", "32x2,48x3", "--c", 1)) == 0
    out = capsys.readouterr().out
    assert "logistic_top1" in out and "±" in out and "not a published protocol" in out
    assert not (run / "features").exists()
    rows = of_top1(run)
    assert [row.size for row in rows] == ["32x2", "48x3"] and rows[0].step == 3
    assert rows[0].error == pytest.approx(results.error(rows[0].value, 15))
    few_labels = ("--sizes", "32x2", "--c", 1, "--shots", "3,1", "--draws", 2)
    assert main(words(run, *few_labels)) == 0  # another name: not compared with those of all
    [_, _, row, one] = of_top1(run)
    assert row.name == "logistic_top1_3_per_class" and row.protocol["train"]["images"] == 9
    assert one.name == "logistic_top1_1_per_class" and one.protocol["train"]["images"] == 3
    assert "spread" in row.setting and (one.protocol["shots"], one.protocol["draws"]) == (1, 2)
    capsys.readouterr()
    assert main(["sizes", str(run), "--worth", "logistic_top1", "--json"]) == 0
    found = {row["size"]: row["worth"] for row in json.loads(capsys.readouterr().out)}
    assert found == {"32x2": rows[0].value, "32x3": None, "48x2": None, "48x3": rows[1].value}


def asked(x: torch.Tensor, labels: torch.Tensor) -> list[Measured]:
    return [Measured("val", lambda size: (x, labels), {})]


def top1(x: torch.Tensor, labels: torch.Tensor, wanted: torch.Tensor, **changed: object) -> float:
    return learnt(x, labels, wanted, **changed).accuracies["val"]["top1"].percent


def learnt(x: torch.Tensor, labels: torch.Tensor, wanted: torch.Tensor, **changed: object) -> Found:
    given = {"subset": 1.0, "shots": None, "draws": 1, "c": 1.0, "seed": 0} | changed
    return score(x, labels, "", asked(x, wanted), SimpleNamespace(**given))


def test_labels_of_other_classes_are_never_right_and_a_subset_is_what_is_learnt_from() -> None:
    x, labels = clouds(300, apart=8)
    assert top1(x, labels, labels) > 95
    assert top1(x, labels, (labels + 1) % CLASSES) < 5
    assert learnt(x, labels, labels, subset=0.1).learnt_from == 30


def test_several_draws_of_a_few_have_a_mean_and_a_spread() -> None:
    x, labels = clouds(300, apart=2)
    values = [top1(x, labels, labels, shots=2, seed=seed) for seed in range(3)]
    mean = learnt(x, labels, labels, shots=2, draws=3)
    assert mean.accuracies["val"]["top1"].percent == pytest.approx(sum(values) / 3)
    assert mean.learnt_from == 6 and len(set(values)) > 1
    assert mean.spread["val"]["top1"] == pytest.approx(max(values) - min(values))
    assert values[0] < top1(x, labels, labels)


def test_shots_are_so_many_of_each_class_and_part_of_more() -> None:
    labels = torch.tensor([0] * 40 + [1] * 4 + [2])
    small, large = (few(labels, SimpleNamespace(shots=n), seed=3) for n in (1, 5))
    assert [int(small[labels == c].sum()) for c in range(3)] == [1, 1, 1]
    assert [int(large[labels == c].sum()) for c in range(3)] == [5, 4, 1]
    assert (large | ~small).all()
    with pytest.raises(UsageError, match="--shots 41: the largest class has 40 images"):
        few(labels, SimpleNamespace(shots=41), seed=3)
    assert not len(few(labels[:0], SimpleNamespace(shots=1), seed=3))  # told where they are read


def test_what_cannot_be_compared_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["--shards", str(tmp_path / "val"), "--sizes", "32x2", "--workers", "0"]
    for name, more in (("unit", ["--normalise"]), ("patches", ["--what", "patches"])):
        assert main(["embed", str(run), *given, *more, "--out", str(tmp_path / name)]) == 0
    other = str(make_teacher(tmp_path / "other", seed=1))
    assert main(["embed", other, *given, "--out", str(tmp_path / "foreign")]) == 0
    for more, status, named in (
        (["--val", tmp_path / "train"], 2, "hold the same images"),
        (["--val", tmp_path / "patches"], 2, "holds patches"),
        (["--val", tmp_path / "unit"], 2, "differ in unit_length"),
        (["--val", tmp_path / "foreign"], 2, "of other weights"),
        (["--val", tmp_path / "nowhere"], 1, "nowhere"),
        (["--sizes", "96x4"], 2, "is not in the space"),
    ):
        capsys.readouterr()
        assert main(words(run, "--sizes", "32x2", "--keep-features", *more)) == status
        assert named in capsys.readouterr().err
    for option, value, named in (
        ("--subset", "10", "is not a share"),
        *(("--c", c, "is not a number above 0") for c in ("0", "nan", "inf")),
    ):
        with pytest.raises(SystemExit):
            main(words(run, option, value))
        assert named in capsys.readouterr().err
