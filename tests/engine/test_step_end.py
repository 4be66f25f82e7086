"""The end of a step at ViT-L's structure: what it launches, and what it reads from the device.

Seen are reads by item and tolist, on a CPU: no copies to the host, which are test_launches.py's.
"""

from collections import Counter
from pathlib import Path

import pytest

from tests.distributed.programs.launch import launch

PROGRAM = "tests.distributed.programs.step_end"
END, HOOKS = (
    300,
    {"1": 800, "2": 1_600},
)  # operators of one rank: norms, clipping, AdamW, average; of a backward pass
OWN_READ = "poa_ds/system/dist.py"  # of the norms


def counted(out: Path, stages: list[int], bf16: dict) -> dict[str, dict[str, Counter[str]]]:
    found = launch(PROGRAM, 1, out, stages=stages, bf16=bf16)
    return {s: {k: Counter(v) for k, v in kinds.items()} for s, kinds in found.items()}


@pytest.mark.slow
def test_the_end_of_a_step_keeps_to_its_budget_and_reads_the_norms_alone(tmp_path: Path) -> None:
    for stage, found in counted(tmp_path, [1, 2], {}).items():
        assert found["end"].total() <= END, (stage, found["end"].most_common(8))
        assert found["hooks"].total() <= HOOKS[stage], (stage, found["hooks"].most_common(8))
        [(place, times)] = found["reads"].items()
        assert place.startswith(OWN_READ) and times == 1, found["reads"]


@pytest.mark.slow
def test_a_second_check_of_all_gradients_would_be_noticed(tmp_path: Path) -> None:
    found = counted(tmp_path, [2], {"check_grad_overflow": True})["2"]
    assert found["end"].total() > END
    assert "deepspeed/" in found["end"].most_common(1)[0][0]
    assert [place for place in found["reads"] if not place.startswith(OWN_READ)]
