"""k-means against scikit-learn and by hand; agreement with classes by hand; the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from poa_ds.cli import main
from poa_ds.evaluate import score_rows
from poa_ds.evaluate.clusters.kmeans import agreement, begin, best, lloyd, nearest
from tests.support.shards import make_shards
from tests.support.teachers import make_teacher


def clouds(
    *, apart: float, count: int = 120, classes: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return apart * torch.eye(classes, 6, dtype=torch.float64)[labels] + noise, labels


@pytest.mark.slow  # scikit-learn takes seconds to import
@pytest.mark.parametrize("apart", [0.5, 8.0])
def test_from_the_same_centres_it_finds_what_scikit_learn_finds(apart: float) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x, _ = clouds(apart=apart)
    for seed in range(5):
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:5]
        theirs = cluster.KMeans(5, init=x[rows].numpy(), n_init=1).fit(x.numpy())
        ours = lloyd(x, x[rows].clone())
        assert ours.labels.tolist() == theirs.labels_.tolist()
        assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-9)
        np.testing.assert_allclose(ours.centres.numpy(), theirs.cluster_centers_, atol=1e-9)


@pytest.mark.slow  # the same
def test_agreement_is_what_scikit_learn_says_of_it() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    for classes, clusters in ((3, 3), (4, 7), (6, 2)):
        a = torch.randint(classes, (60,), generator=generator)
        b = (a + torch.randint(2, (60,), generator=generator)) % clusters
        found = agreement(a, b)
        for name, score in (
            ("nmi", metrics.normalized_mutual_info_score),
            ("ari", metrics.adjusted_rand_score),
            ("fmi", metrics.fowlkes_mallows_score),
        ):
            assert found[name] == pytest.approx(100 * score(a.numpy(), b.numpy()), abs=1e-9)


def test_agreement_by_hand() -> None:
    """Classes 0 and 1 of 3 images each, in three clusters: 2 0 1 and 0 3 0."""
    classes, clusters = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 2, 1, 1, 1])
    found = agreement(classes, clusters)
    assert found["acc"] == pytest.approx(100 * 5 / 6)
    entropy = -(2 / 6 * math.log(2 / 6) + 3 / 6 * math.log(3 / 6) + 1 / 6 * math.log(1 / 6))
    assert found["nmi"] == pytest.approx(100 * 2 * math.log(2) / (math.log(2) + entropy))
    # pairs: 6 of one class, 4 of one cluster, 4 of both; of 15
    assert found["fmi"] == pytest.approx(100 * 4 / math.sqrt(6 * 4))
    assert found["ari"] == pytest.approx(100 * (4 - 6 * 4 / 15) / ((6 + 4) / 2 - 6 * 4 / 15))
    permuted = agreement(classes, 1 - classes)
    assert all(value == pytest.approx(100) for value in permuted.values())
    assert agreement(classes, torch.tensor([0, 1, 0, 1, 0, 1]))["acc"] == pytest.approx(100 * 4 / 6)


def test_nearest_is_what_distances_one_by_one_say() -> None:
    x, _ = clouds(apart=1.0, count=30)
    centres = x[:4] + 0.1
    labels, distances = nearest(x, centres, x.square().sum(1))
    for row in range(30):
        all_ = [float(((x[row] - centre) ** 2).sum()) for centre in centres]
        assert int(labels[row]) == int(np.argmin(all_))
        assert float(distances[row]) == pytest.approx(min(all_), abs=1e-12)


def test_an_empty_cluster_gets_the_farthest_row() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [50.0]], dtype=torch.float64)
    found = lloyd(x, torch.tensor([[0.0], [-1000.0]], dtype=torch.float64))
    assert found.labels.tolist() == [0, 0, 0, 1]
    assert found.centres.flatten().tolist() == [1.0, 50.0] and found.inertia == 2.0


def test_clouds_far_apart_are_found_whatever_the_seed_and_rolled_labels_are_no_harm() -> None:
    x, labels = clouds(apart=30.0)
    for seed in range(3):
        found = best(x, 4, starts=2, seed=seed)
        assert agreement(labels, found.labels)["acc"] == 100
        assert agreement((labels + 1) % 4, found.labels)["acc"] == 100  # only a permutation
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    assert agreement(shuffled, found.labels)["acc"] < 50
    one, other = (begin(x, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert torch.equal(one, other)
    assert best(x, 4, starts=5, seed=0).inertia <= best(x, 4, starts=1, seed=0).inertia


def test_a_start_has_a_row_of_each_cloud() -> None:
    x, labels = clouds(apart=30.0)
    for seed in range(5):
        chosen = begin(x, 4, torch.Generator().manual_seed(seed))
        rows = (x[:, None] == chosen).all(2).int().argmax(0)
        assert torch.equal(x[rows], chosen) and len(labels[rows].unique()) == 4


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_shards(tmp_path / "val", 24)
    return make_teacher(tmp_path / "run")


def clustered(run: Path, *more: object) -> int:
    given = ("--val", run.parent / "val", "--sizes", "32x2,48x3", "--workers", 0, *more)
    return main([str(word) for word in ("eval", "clusters", run, *given)])


def test_the_command_reports_the_mean_of_seeds_and_their_spread(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert clustered(run, "--starts", 2) == 0
    out = capsys.readouterr().out
    assert "clusters_acc" in out and "clusters_fmi" in out and "acc_spread" in out
    rows = score_rows.read(run / "evaluations.jsonl")
    assert [(row.size, row.metric) for row in rows] == [
        (size, metric) for size in ("32x2", "48x3") for metric in ("acc", "nmi", "ari", "fmi")
    ]
    assert rows[0].protocol["clusters"] == 3 and rows[0].protocol["seeds"] == [0, 1, 2]
    assert rows[0].error > 0 and rows[1].error is None and 33 <= rows[0].value <= 100
    assert main(["sizes", str(run), "--worth", "clusters_acc", "--json"]) == 0
    found = {row["size"]: row["worth"] for row in json.loads(capsys.readouterr().out)}
    assert found["32x2"] == rows[0].value


@pytest.mark.parametrize(("more", "named"), [(("--clusters", 25), "24 images cannot be in 25")])
def test_what_cannot_be_clustered_is_named(
    run: Path, more: tuple, named: str, capsys: pytest.CaptureFixture
) -> None:
    assert clustered(run, *more) == 2
    assert named in capsys.readouterr().err
    make_shards(run.parent / "one", 1)
    assert clustered(run, "--val", run.parent / "one") == 1
    assert "are of one class" in capsys.readouterr().err
