"""eval knn from few labels, its other metrics, and votes among some of the classes."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate import command, knn_protocol, results, score_rows, split
from poa_ds.evaluate.knn_protocol import Asked
from poa_ds.evaluate.neighbours import Answers, Bank, Deal, answers
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UsageError
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
    assert cli.main([*words, "--shots", "2", "--draws", "1", "--json"]) == 0
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


def test_each_number_of_shots_is_a_mean_of_draws_from_features_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path)
    words, read = ["eval", "knn", str(tmp_path), "--sizes", "32x2"], []
    once = knn_protocol.eval_batches
    monkeypatch.setattr(
        knn_protocol, "eval_batches", lambda f, rows, **k: read.append(rows) or once(f, rows, **k)
    )
    assert cli.main([*words, "--shots", "1,3", "--draws", "2"]) == 0
    assert "knn_top1_1_per_class" in (printed := capsys.readouterr().out) and "spread" in printed
    bank = ShardFolder.open(tmp_path / "train")
    drawn = {number: [drawn_keys(bank, number, seed) for seed in (0, 1)] for number in (1, 3)}
    every = {key for draws in drawn.values() for keys in draws for key in keys}
    assert [len(rows) for rows in read] == [len(every), 25]  # and the queries
    found = {row.name: row for row in score_rows.read(evaluations(tmp_path))}
    for number, draws in drawn.items():
        values = []
        for keys in draws:
            (tmp_path / "listed.txt").write_text("\n".join(keys))
            assert cli.main([*words, "--subset", str(tmp_path / "listed.txt")]) == 0
            alone = score_rows.read(evaluations(tmp_path))[-2]
            assert alone.name == "knn_top1_of_listed"
            values.append(alone.value)
        row = found[f"knn_top1_{number}_per_class"]
        assert row.value == pytest.approx(np.mean(values))
        assert row.setting["spread"] == pytest.approx(max(values) - min(values))
        assert row.protocol["train"]["images"] == row.protocol["k_at_most"] == 3 * number
        assert (row.protocol["shots"], row.protocol["draws"]) == (number, 2)
    assert not (tmp_path / "knn.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--draws", "3"], "--draws 3 of few labels: give --shots 5"),
        (["--shots", "2,5,2"], "'2,5,2' has 2 twice"),
        (["--shots", "2,0"], "'0' is not a number from 1 on"),
    ],
)
def test_draws_and_shots_that_make_no_sense_are_told(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"subset": 1.0, "draws": None}
    wanted = [split.draws_of(SimpleNamespace(**given, shots=shots)) for shots in (None, (2,))]
    assert wanted == [1, 5]
    parser = argparse.ArgumentParser()
    split.add_arguments(parser, draws=True)
    with pytest.raises((UsageError, SystemExit)) as error:
        split.draws_of(parser.parse_args(words))
    assert message in f"{error.value}{capsys.readouterr().err}"


def drawn_keys(bank: ShardFolder, number: int = 2, seed: int = 0) -> list[str]:
    """The images that --shots takes: the first of each class in the order of the seed."""
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed)).tolist()
    of_class = [[row for row in order if bank.labels[row] == c][:number] for c in range(3)]
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


def test_an_image_of_no_known_class_that_stands_for_a_damaged_one_is_not_counted() -> None:
    first = {20: torch.tensor([[0, 1], [1, 0], [0, 1], [0, 1]])}
    labels = torch.tensor([0, 1, 1, 2])  # the last is of none of two classes
    found = Answers(right={20: labels == first[20][:, 0]}, first=first, labels=labels)
    of = Asked(split=None, ranked=True)
    metrics = command._metrics(found, of, 20, 2)
    assert metrics["top1"].images == 3 and metrics["top1"].percent == pytest.approx(200 / 3)
    assert metrics["mean_per_class"].percent == pytest.approx(75)
