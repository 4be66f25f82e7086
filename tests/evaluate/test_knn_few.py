"""eval knn from few labels, its other metrics, and votes among some of the classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.neighbours import Bank, Deal, answers
from poa_ds.model.space import Subnet
from tests.evaluate.test_knn import CPU, make_run, slow_answers


def test_few_labels_and_other_metrics_go_to_evaluations_and_knn_jsonl_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_run(tmp_path)
    words = ["eval", "knn", str(tmp_path), "--sizes", "32x2"]
    assert cli.main(words) == 0
    [whole], rows = results.read(tmp_path / "knn.jsonl"), score_rows.read(evaluations(tmp_path))
    assert [row.name for row in rows] == ["knn_mean_per_class"]  # of three classes
    bank, queries = (ShardFolder.open(tmp_path / name) for name in ("train", "val"))
    model, recipe, _ = load_teacher(tmp_path)
    by_k = slow_answers(model, Subnet(32, 2), bank, queries, recipe)
    k = recipe.evaluation.report_k
    of_class = [
        np.mean([r for r, label in zip(by_k[k], queries.labels, strict=True) if label == c])
        for c in range(3)
    ]
    assert rows[0].value == pytest.approx(100 * np.mean(of_class))
    assert whole.knn["32x2"][k] == pytest.approx(100 * np.mean(by_k[k]))
    capsys.readouterr()
    assert cli.main([*words, "--shots", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)  # and nothing else
    assert printed[0]["name"] == "knn_top1_2_per_class"
    assert results.read(tmp_path / "knn.jsonl") == [whole]
    top1 = score_rows.read(evaluations(tmp_path))[1]
    assert top1.name == "knn_top1_2_per_class" and top1.protocol["train"]["images"] == 6
    listed = tmp_path / "six.txt"
    kept = drawn_keys(bank)
    listed.write_text("".join(f"{key}.png\n" for key in kept))
    assert cli.main([*words, "--subset", str(listed)]) == 0
    same = score_rows.read(evaluations(tmp_path))[3]
    assert same.name == "knn_top1_of_six" and same.value == top1.value


def evaluations(run: Path) -> Path:
    return run / "evaluations.jsonl"


def drawn_keys(bank: ShardFolder) -> list[str]:
    """The images that --shots 2 takes: the first two of each class in the order of the seed."""
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0)).tolist()
    of_class = [[row for row in order if bank.labels[row] == c][:2] for c in range(3)]
    return [bank.key(row) for rows in of_class for row in rows]


def test_top5_needs_a_vote_and_answers_may_be_among_a_few_classes() -> None:
    """Ten rows of a bank, each its own direction; two queries between some of them."""
    rows = torch.eye(10)
    asked = F.normalize(torch.stack([rows[3] + 0.5 * rows[8], rows[0] + 0.9 * rows[1]]), dim=1)
    given = {"bank_labels": torch.arange(10), "query_labels": torch.tensor([8, 5])}
    given |= {"classes": 11, "temperature": 0.07, "k": (2,), "device": CPU, "ranked": True}
    bank, deal = Bank([rows], [range(10)]), Deal(2, 2)
    found = answers(bank, [asked], deal, **given)
    assert found.right[2].tolist() == [False, False]
    assert found.first[2].tolist() == [[3, 8, -1, -1, -1], [0, 1, -1, -1, -1]]
    among = torch.tensor([c in (1, 8) for c in range(11)])
    found = answers(bank, [asked], deal, among=among, **given)
    assert found.right[2].tolist() == [True, False]
    assert found.first[2].tolist() == [[8, -1, -1, -1, -1], [1, -1, -1, -1, -1]]
