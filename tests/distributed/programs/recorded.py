"""poa_ds.train that waits in its third step until MLflow has made its run.

python -m tests.distributed.programs.recorded FILE WORDS...     FILE: where the run's ids are kept
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from poa_ds import train
from poa_ds.run.step import Stepper, StepResult
from tests.support.mlflow_runs import PATIENCE_SECONDS

STEP = 3


def waiting(ids: Path) -> Callable[..., StepResult]:
    whole = Stepper.step

    def step(self: Stepper, batches: list, *args: object, **more: Callable) -> StepResult:
        end = time.monotonic() + PATIENCE_SECONDS
        while batches[0].step + 1 == STEP and time.monotonic() < end:
            if ids.exists() and "run" in json.loads(ids.read_text()):
                break
            time.sleep(0.05)
        return whole(self, batches, *args, **more)

    return step


if __name__ == "__main__":
    Stepper.step = waiting(Path(sys.argv[1]))
    sys.exit(train.main(sys.argv[2:]))
