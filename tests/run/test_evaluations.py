"""What an evaluation in a run says of its progress in a log."""

from types import SimpleNamespace

import pytest

from poa_ds.run import evaluations
from poa_ds.run.evaluations import Evaluations


def test_a_log_has_lines_of_an_evaluation_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked: list[None] = []
    own = SimpleNamespace(
        engine=SimpleNamespace(device="cpu"), between_batches=lambda: looked.append(None)
    )
    words = {"total": 3, "label": "k-NN", "unit": "batches"}
    assert list(Evaluations._batches(own, "abc", **words)) == ["a", "b", "c"]
    assert len(looked) == 3 and capsys.readouterr().err == ""  # far below 30 s
    monkeypatch.setattr(evaluations, "LOG_SECONDS", 0.0)
    list(Evaluations._batches(own, "abc", **words))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[1].startswith("k-NN: 2 of 3 batches, ")
