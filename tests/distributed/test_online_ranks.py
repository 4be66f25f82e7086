"""The online probe beside real engines: no loss and no weight feels it, on any ranks and stages."""

from pathlib import Path

import pytest

from tests.distributed.programs.launch import launch

PROGRAM = "tests.distributed.programs.probed"
ON = {"evaluation__online": {"labels": True, "lr": 0.1}}


def training(records: list[dict]) -> list[dict]:
    """The records without what the probe adds to them."""
    kept = [{key: value for key, value in r.items() if key != "online"} for r in records]
    for record in kept:
        record["state"] = {n: x for n, x in record["state"].items() if not n.startswith("online.")}
    return kept


@pytest.mark.slow
def test_no_number_of_a_run_changes_and_ranks_learn_what_one_process_does(tmp_path: Path) -> None:
    one = launch(PROGRAM, 1, tmp_path / "one", stages=[0], recipe=ON)
    two = launch(PROGRAM, 2, tmp_path / "two", stages=[2, 3], recipe=ON)
    for found, stage in ((one, 0), (two, 2), (two, 3)):
        plain, probed = found[f"{stage} without"], found[f"{stage} with"]
        assert training(probed) == training(plain)  # to the last bit
        assert [r["online"] for r in plain] == [None] * 3
        # a step that is skipped is not learnt from
        assert [r["applied"] for r in probed] == [True, False, True]
        assert [r["online"] is not None for r in probed] == [True, False, True]
        for got, wanted in zip(probed[::2], one["0 with"][::2], strict=True):
            got, wanted = got["online"], wanted["online"]
            assert got["labelled"] == wanted["labelled"] > 0
            assert got["right"] == pytest.approx(wanted["right"], abs=1)  # of nearly equal scores
            assert got["weights"] == pytest.approx(wanted["weights"], rel=1e-4, abs=1e-6)
    for found in (one, two):
        assert found["resumed"] == found["on"]  # to the last bit
