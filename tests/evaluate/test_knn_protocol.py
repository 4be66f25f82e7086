"""Bank and queries: what makes the accuracies of a comparison say less than they seem to."""

import dataclasses
from pathlib import Path

import pytest

from poa_ds.evaluate.knn_protocol import KnnProtocol
from tests.evaluate.test_knn import tiny
from tests.support.shards import make_shards


def test_shared_images_and_a_single_class_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same photographs, sharded with another seed: 100 % without a remark."""
    options = tiny().evaluation
    bank = make_shards(tmp_path / "bank")
    other = make_shards(tmp_path / "other", count=36, seed=1)  # 30 of them are in the bank
    assert KnnProtocol.of(bank, other, options).doubts() == [
        f"30 of 36 queries are the same images in {other.path} and the bank {bank.path}: each "
        "finds itself"
    ]
    fewer = dataclasses.replace(options, bank_images=3)  # only what takes part counts
    assert "3 of 36 queries" in KnnProtocol.of(bank, other, fewer).doubts()[0]
    one = make_shards(tmp_path / "one", count=1)
    apart = make_shards(tmp_path / "apart", count=2, first=40)
    KnnProtocol.of(one, apart, options).say_doubts()
    said = capsys.readouterr().err
    assert said == (
        f"warning: k-NN accuracy: all images of the bank {one.path} are of one class: every "
        "answer is right\n"
    )
    assert KnnProtocol.of(bank, apart, options).doubts() == []
