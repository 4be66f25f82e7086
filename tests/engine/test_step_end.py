"""The end of a step at ViT-L's structure: what it launches, and what it reads from the device.

Seen are reads by item and tolist, on a CPU: no copies to the host, which are test_launches.py's.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.programs.launch import launch

PROGRAM = "tests.distributed.programs.step_end"
OWN_READ = "poa_ds/system/dist.py"  # of the norms


@dataclass(frozen=True)
class Budget:
    """Operators of one rank. end: norms, clipping, AdamW, average. hooks: of ZeRO, per slot. reads:
    where values are read, once each."""

    end: int
    hooks: int
    reads: tuple[str, ...] = (OWN_READ,)


# (stage, slots of the rank): DeepSpeed sums several in fp32
BUDGETS = {
    (1, 1): Budget(160, 800),
    (2, 1): Budget(160, 800),
    (2, 2): Budget(160, 1_600),
    # DeepSpeed reads the number on the host that stands for the norms it does not take again
    (3, 1): Budget(180, 850, (OWN_READ, "deepspeed/runtime/utils.py")),
}


def counted(
    out: Path, stages: list[int], slots: int, *, checks: bool = False
) -> dict[str, dict[str, Counter[str]]]:
    found = launch(PROGRAM, 1, out, stages=stages, slots=slots, checks=checks)
    return {s: {k: Counter(v) for k, v in kinds.items()} for s, kinds in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2])
def test_the_end_of_a_step_keeps_to_its_budget_and_reads_the_norms_alone(
    slots: int, tmp_path: Path
) -> None:
    stages = [stage for stage, n in BUDGETS if n == slots]
    for stage, found in counted(tmp_path, stages, slots).items():
        budget = BUDGETS[int(stage), slots]
        assert found["end"].total() <= budget.end, (stage, found["end"].most_common(8))
        assert found["hooks"].total() <= budget.hooks, (stage, found["hooks"].most_common(8))
        places = {place.partition(":")[0]: times for place, times in found["reads"].items()}
        assert places == dict.fromkeys(budget.reads, 1), found["reads"]


@pytest.mark.slow
def test_a_second_check_of_all_gradients_would_be_noticed(tmp_path: Path) -> None:
    found = counted(tmp_path, [2], 1, checks=True)["2"]
    assert found["end"].total() > BUDGETS[2, 1].end
    assert "deepspeed/" in found["end"].most_common(1)[0][0]
    assert [place for place in found["reads"] if not place.startswith(OWN_READ)]
