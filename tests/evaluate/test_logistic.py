"""Logistic regression against scikit-learn, differences, and what it must refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from poa_ds.cli import main
from poa_ds.evaluate import logistic
from poa_ds.evaluate.logistic import choose, drawn, fit, objective
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
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Features of training and validation images by two sizes."""
    run = make_teacher(tmp_path / "run")
    for name, count in (("train", 40), ("val", 15)):
        make_shards(tmp_path / name, count)
        words = ["--shards", tmp_path / name, "--out", tmp_path / f"f_{name}", "--workers", 0]
        assert main(["embed", str(run), *map(str, words), "--sizes", "32x2,48x3"]) == 0
    return tmp_path / "f_train", tmp_path / "f_val"


@pytest.mark.slow
def test_the_command_measures_every_size(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    words = ["eval", "logistic", "--train", str(folders[0]), "--val", str(folders[1])]
    capsys.readouterr()
    assert main([*words, "--json", "--c", "10"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["size"] for row in rows] == ["w0032_d02", "w0048_d03"]
    for row in rows:
        assert row["train_images"] == 40 and row["held_out"] is None and row["converged"]
    train, val = (load_file(folder / "w0048_d03.safetensors") for folder in folders)
    sklearn = pytest.importorskip("sklearn.linear_model")
    other = sklearn.LogisticRegression(C=10, tol=1e-8, max_iter=5000)
    other.fit(train["features"].astype(np.float64), train["labels"])
    wanted = 100 * other.score(val["features"].astype(np.float64), val["labels"])
    assert rows[1]["top1"] == pytest.approx(wanted, abs=100 / 15 + 1e-6)  # one image on a border
    assert main([*words, "--c", "1", "--subset", "25%"]) == 0
    assert "given" in (text := capsys.readouterr().out) and "w0032_d02" in text


def test_what_cannot_be_compared_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train, val = map(str, folders)
    patches = str(tmp_path / "patches")
    words = ["--shards", str(tmp_path / "val"), "--sizes", "32x2", "--workers", "0"]
    run = str(tmp_path / "run")
    assert main(["embed", run, *words, "--what", "patches", "--out", patches]) == 0
    unit = str(tmp_path / "unit")
    assert main(["embed", run, *words, "--normalise", "--out", unit]) == 0
    capsys.readouterr()
    for more, named in (
        (["--train", train, "--val", train], "hold the same images"),
        (["--train", train, "--val", patches], "holds patches"),
        (["--train", train, "--val", unit], "differ in unit_length"),
        (["--train", train, "--val", str(tmp_path)], "holds no features"),
    ):
        assert main(["eval", "logistic", *more]) in (1, 2)
        assert named in capsys.readouterr().err
    for option, value, named in (
        ("--subset", "10", "is not a share"),
        *(("--c", c, "is not a number above 0") for c in ("0", "nan", "inf")),
        ("--device", "gpu", "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            main(["eval", "logistic", "--train", train, "--val", val, option, value])
        assert named in capsys.readouterr().err
