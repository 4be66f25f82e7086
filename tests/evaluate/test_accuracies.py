"""Accuracies of ranked classes by a slow loop and by hand, and which images few labels are."""

import argparse
from math import sqrt
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from poa_ds.evaluate import results
from poa_ds.evaluate.accuracies import NONE, accuracies, best_first
from poa_ds.evaluate.split import Listed, amount, few
from poa_ds.system.arguments import share_or_file
from poa_ds.system.errors import UsageError, UserError


def test_the_best_come_first_and_the_smaller_of_equal_ones() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.3, 0.0, 0.9, -1.0, 0.2], [0.0] * 7])
    assert best_first(scores).tolist() == [[4, 1, 2, 6, 0], [0, 1, 2, 3, 4]]
    among = torch.tensor([True, True, False, False, False, True, False])
    assert best_first(scores, among).tolist() == [[1, 0, 5, NONE, NONE], [0, 1, 5, NONE, NONE]]
    assert best_first(scores[:, :3]).tolist() == [[1, 2, 0, NONE, NONE], [0, 1, 2, NONE, NONE]]


def test_every_metric_is_that_of_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, truth = torch.randn(60, 8, generator=generator), torch.arange(60) % 7
    scores[torch.arange(60), truth] += 1
    found = accuracies(best_first(scores), truth, 8)
    ranked = [sorted(range(8), key=lambda c: -row[c]) for row in scores.tolist()]
    top1 = [order[0] == t for order, t in zip(ranked, truth.tolist(), strict=True)]
    top5 = [t in order[:5] for order, t in zip(ranked, truth.tolist(), strict=True)]
    shares = []
    for c in range(7):
        own = [right for right, t in zip(top1, truth.tolist(), strict=True) if t == c]
        shares.append((sum(own) / len(own), len(own)))
    assert found["top1"].percent == pytest.approx(100 * sum(top1) / 60)
    assert found["top1"].error == pytest.approx(results.error(found["top1"].percent, 60))
    assert found["top5"].percent == pytest.approx(100 * sum(top5) / 60)
    assert found["mean_per_class"].percent == pytest.approx(100 * sum(p for p, _ in shares) / 7)
    wanted = 1.96 * 100 * sqrt(sum(p * (1 - p) / n for p, n in shares)) / 7
    assert found["mean_per_class"].error == pytest.approx(wanted)
    assert "top5" not in accuracies(best_first(scores[:, :5]), truth % 5, 5)


def test_where_several_are_right_any_of_them_counts() -> None:
    first = torch.tensor([[2, 0], [1, 0], [0, 1], [NONE, NONE], [3, 2]])
    truth = torch.tensor(
        [[0, 0, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]], dtype=torch.bool
    )
    found = accuracies(first, truth, 4)
    assert found.keys() == {"top1"} and found["top1"].percent == 60.0


def words(**changed: object) -> argparse.Namespace:
    return SimpleNamespace(**{"subset": 1.0, "shots": None} | changed)


def test_a_file_of_names_says_which_images_are_learnt_from(tmp_path: Path) -> None:
    path = tmp_path / "1percent.txt"
    path.write_text("n04235860_14959.JPEG\nn01440764_7\n\n")
    labels = torch.zeros(4, dtype=torch.int64)
    keys = ["a.tar/n01440764_7", "a.tar/n01440764_8", "b.tar/n04235860_14959", "x/v1.5"]
    args = words(subset=share_or_file(str(path)))
    chosen = few(labels, args, seed=0, keys=lambda: keys)
    assert chosen.tolist() == [True, False, True, False] and amount(args) == "_of_1percent"
    with pytest.raises(UserError, match=r"names 1 images that .* lacks: n04235860_14959"):
        few(labels[:2], args, seed=0, keys=lambda: keys[:2])
    with pytest.raises(UserError, match="several images of one name"):
        Listed.read(path).rows([*keys, "c.tar/n01440764_7.png"], "train")
    with pytest.raises(UsageError, match="it takes a share"):
        few(labels, args, seed=0)
    path.write_text("\n")
    with pytest.raises(UserError, match="names no image"):
        Listed.read(path)
    assert share_or_file("10%") == 0.1
