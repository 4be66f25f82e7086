"""`poa-ds eval finetune` that asks itself to stop in a step, and waits in it until it is heard.

python -m tests.distributed.programs.finetuned STEP WORDS...     (0: it is not stopped)
"""

import os
import signal
import sys
import time
from collections.abc import Callable

from poa_ds import finetune
from poa_ds.run.step import Stepper, StepResult


def stops_at(number: int) -> Callable[..., StepResult]:
    whole = Stepper.step

    def step(self: Stepper, batches: list, *args: object, **more: Callable) -> StepResult:
        if batches[0].step + 1 == number:
            os.kill(os.getpid(), signal.SIGTERM)
            while not more["stop"]():
                time.sleep(0.01)
        return whole(self, batches, *args, **more)

    return step


if __name__ == "__main__":
    Stepper.step = stops_at(int(sys.argv[1]))
    sys.exit(finetune.main(sys.argv[2:]))
