"""A run goes on with another number of ranks and another ZeRO stage.

The worker compares all masters, moments and teacher weights bit for bit when it has loaded; here
are the next 20 steps, against the run that did not change.
"""

from pathlib import Path

import pytest

from tests.distributed.programs.launch import launch
from tests.distributed.test_stages import WORKER

pytestmark = pytest.mark.slow

SAVED, LAST = 3, 23  # steps; after 3 steps 2 ranks have had 6 slots each, no multiple of 4
# (ranks, stage) before -> after; 4 slots, so 4 ranks have one each
CHANGES = {
    (2, 1): [(1, 3), (4, 2)],
    (2, 2): [(1, 1), (4, 3)],
    (2, 3): [(1, 2), (4, 1)],
    (1, 0): [(2, 3), (2, 2), (2, 1)],
    (4, 2): [(2, 1), (2, 2), (1, 0)],
}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], tuple[list, Path]]:
    """(ranks, stage) -> the steps after the checkpoint, and where it is."""
    found = {}
    for ranks in (1, 2, 4):
        stages = [stage for n, stage in CHANGES if n == ranks]
        out = tmp_path_factory.mktemp(f"ranks{ranks}")
        got = launch(WORKER, ranks, out, stages=stages, steps=[0, SAVED], save=LAST)
        found |= {(ranks, s): (got[f"{s}+"], out / f"stage{s}") for s in stages}
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_twenty_steps_after_a_change_have_the_losses_of_the_run_without_it(
    before: dict, ranks: int, tmp_path: Path
) -> None:
    wanted = {
        str(stage): {
            str(before[source][1]): before[source][0]
            for source, targets in CHANGES.items()
            if (ranks, stage) in targets
        }
        for stage in range(4)
    }
    got = launch(
        WORKER,
        ranks,
        tmp_path,
        stages=[int(stage) for stage, sources in wanted.items() if sources],
        steps=[SAVED, LAST],
        load={stage: [*sources] for stage, sources in wanted.items()},
    )
    expected = [records for sources in wanted.values() for records in sources.values()]
    assert len(got) == len(expected) > 1
    for records, same in zip(got.values(), expected, strict=True):
        for mine, theirs in zip(records, same, strict=True):
            assert mine["sizes"] == theirs["sizes"]
            for name, value in theirs["terms"].items():
                assert mine["terms"][name] == pytest.approx(value, rel=1e-5, abs=1e-9)
