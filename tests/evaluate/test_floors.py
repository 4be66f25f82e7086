"""--floors: raw pixels and random weights by the same protocol, under names of their own."""

from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from poa_ds.cli import main
from poa_ds.data.image.views import center_view, decode
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate import score_rows
from poa_ds.evaluate.feature_sets import FeatureSet
from poa_ds.evaluate.features import random_weights
from poa_ds.evaluate.floors import SIZE, Pixels
from poa_ds.evaluate.score_rows import OF_PIXELS, OF_RANDOM, ScoreRow
from poa_ds.model.space import Subnet
from poa_ds.recipe import load
from poa_ds.system.errors import UsageError
from tests.support.shards import make_shards
from tests.support.teachers import RECIPE, make_teacher


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Its teacher is not the network that its recipe begins with: another seed."""
    make_shards(tmp_path / "train", 33)
    make_shards(tmp_path / "val", 12, first=100)
    return make_teacher(tmp_path / "run", seed=7)


def evaluated(run: Path, kind: str, *more: object) -> dict[str, list[ScoreRow]]:
    """Floor -> rows of the metric that comes first, each row's own name aside."""
    train = () if kind == "clusters" else ("--train", run.parent / "train")
    words = ["eval", kind, run, *train, "--val", run.parent / "val", "--workers", 0]
    assert main([str(word) for word in (*words, "--sizes", "32x2,48x3", "--floors", *more)]) == 0
    found: dict[str, list[ScoreRow]] = {}
    for row in score_rows.read(run / "evaluations.jsonl"):
        if row.metric.startswith(("top1", "acc")):
            found.setdefault(row.floor, []).append(row)
    return found


def centre(folder: ShardFolder) -> tuple[Tensor, Tensor]:
    """(normalised images, labels), read here."""
    recipe = load.from_dict(RECIPE).augmentation
    every = range(len(folder))
    images = torch.stack([center_view(decode(folder.read(i)), 32, 32) for i in every]).float()
    mean, std = (255 * torch.tensor(x)[:, None, None] for x in (recipe.mean, recipe.std))
    return (images - mean) / std, torch.tensor([folder.label(i) for i in every])


def test_of_logistic_they_are_scikit_learn_s_on_features_that_were_never_trained(run: Path) -> None:
    found = evaluated(run, "logistic", "--c", 0.01, "--keep-features")
    assert {name: [row.size for row in rows] for name, rows in found.items()} == {
        "": ["32x2", "48x3"],
        OF_PIXELS: [SIZE],
        OF_RANDOM: ["32x2", "48x3"],
    }
    train, val = (centre(ShardFolder.open(run.parent / name)) for name in ("train", "val"))
    network = random_weights(load.from_dict(RECIPE)).eval()
    kept = map(FeatureSet.at, (run / "features" / "step00000003").iterdir())
    sets = {(of.setting["weights_sha256"], of.setting["rows"]): of for of in kept}

    def check(row: ScoreRow, weights: str, size: str, x: Tensor, asked: Tensor) -> None:
        for wanted, rows in ((x, 33), (asked, 12)):
            torch.testing.assert_close(sets[weights, rows].rows(size)[0], wanted)
        classifier = LogisticRegression(C=0.01, tol=1e-10, max_iter=5000).fit(x, train[1])
        percent = 100 * classifier.score(asked, val[1])
        assert row.value == pytest.approx(percent, abs=100 / 12 + 1e-6)  # by rounding, an image

    [pixels] = found[OF_PIXELS]
    flat = (images.flatten(1) for images, _ in (train, val))
    check(pixels, "raw pixels, 32 of a side", "3072x0", *flat)
    for row in found[OF_RANDOM]:
        size = Subnet.read(row.size)
        tokens = (network(images, size)[:, 0].detach() for images, _ in (train, val))
        check(row, "random weights, seed 0", row.size, *tokens)


def test_of_linear_they_have_the_protocol_and_names_of_their_own(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    short = ("--crops", "centre", "--steps", 6, "--batch", 8, "--learning-rates", 0.05)
    found = evaluated(run, "linear", *short, "--subset", "50%")
    names = {row.name for rows in found.values() for row in rows}
    assert names == {
        f"linear_top1_of_50%{floor}{chosen}"
        for floor in ("", OF_PIXELS, OF_RANDOM)
        for chosen in ("", "_best_on_val")
    }
    assert {row.protocol_id for row in found[""]} == {row.protocol_id for row in found[OF_RANDOM]}
    assert {row.floor_of for row in found[OF_RANDOM]} == {row.name for row in found[""]}
    [pixels, _] = found[OF_PIXELS]
    assert (pixels.size, pixels.setting["kind"], pixels.protocol["taps"]) == (SIZE, *2 * ["pixels"])
    printed = capsys.readouterr().out
    assert printed.count("floor: step 3, ") == 2 and SIZE in printed
    assert sorted(path.name for path in run.iterdir()) == ["evaluations.jsonl", "teacher"]


def test_crops_that_are_seen_anew_are_those_of_the_sizes(run: Path) -> None:
    """Three steps of a batch each: it runs, and what it leaves behind is rows alone."""
    short = ("--steps", 3, "--batch", 8, "--learning-rates", "0.01", "--sizes", "32x2")
    found = evaluated(run, "linear", *short)
    assert [row.size for row in found[OF_PIXELS]] == [SIZE, SIZE]
    assert found[OF_PIXELS][0].protocol["crops"] == "random"
    assert not (run / "linear").exists()


def test_of_clusters_they_are_there_and_no_size_is_judged_by_a_floor(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    found = evaluated(run, "clusters", "--seeds", 1, "--starts", 1)
    assert {name: len(rows) for name, rows in found.items()} == {"": 2, OF_PIXELS: 1, OF_RANDOM: 2}
    words = ["sizes", str(run), "--worth"]
    assert main([*words, "clusters_acc"]) == 0
    assert main([*words, "clusters_acc_random_weights"]) == UsageError.exit_status
    assert "that is a floor, of what was not trained; sizes are worth clusters_acc" in (
        capsys.readouterr().err
    )


def test_features_that_lie_there_have_no_pixels(run: Path, capsys: pytest.CaptureFixture) -> None:
    out = run.parent / "features"
    words = ["embed", run, "--shards", run.parent / "val", "--out", out, "--workers", 0]
    assert main([str(word) for word in words]) == 0
    words = ["eval", "clusters", run, "--val", out, "--floors"]
    assert main([str(word) for word in words]) == UsageError.exit_status
    assert "--floors reads images" in capsys.readouterr().err


def test_raw_pixels_are_those_of_every_channel() -> None:
    model = Pixels(4, 5)
    [subnet] = model.space.subnets()
    found = model(torch.rand(2, 5, 8, 8), subnet)
    assert found.shape == (2, 1, model.feature_width(subnet)) == (2, 1, 5 * 16)
