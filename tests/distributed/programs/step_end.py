"""What test_step_end.py runs: an engine of ViT-L's structure, whose end of a step is counted.

python -m tests.distributed.programs.step_end OUT '{"stages": [2], "slots": 1, "checks": false}'
"""

import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from unittest import mock

import deepspeed
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from poa_ds.engine import engine
from poa_ds.engine.engine import StepReport
from poa_ds.system import dist
from tests.distributed.programs.worker import IMAGES, Run, made_batch, recipe_with
from tests.support.counted import PACKAGES, VIEWS, innermost

ZERO = "deepspeed/runtime/zero/"  # the backward pass itself is called elsewhere
ASKING = (*PACKAGES, Path(deepspeed.__file__).parent)
READS = ("_local_scalar_dense", "is_nonzero")  # of a value that may be the device's


class Operators(TorchDispatchMode):
    """Counts operators, and by "file:line" who asks for them and who reads a value."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in READS:
            self.reads[place()] += 1
        elif name not in VIEWS and not function.is_view:
            self.places[place()] += 1
        return function(*args, **(kwargs or {}))


def place() -> str:
    """The innermost line of this project or of DeepSpeed."""
    return innermost(traceback.extract_stack(sys._getframe(2)), ASKING) or "elsewhere"


def step_end(stage: int, slots: int, checks: bool) -> dict[str, Counter[str]]:
    """Of the second step, what its end asks for and what DeepSpeed's hooks do in a backward pass.

    checks: with DeepSpeed's own look at all gradients, which a run switches off.
    """
    recipe = recipe_with(
        precision="bf16",
        batch={"slots": slots, "images_per_slot": IMAGES},
        backbone__depth={"min": 24, "max": 24, "step": 1},
        heads__prototypes=[48, 48, 48, 48],
    )
    run = Run(stage, recipe)
    if checks:
        run.engine.stage.zero.check_grad_overflow = True
    made, hooks, counted, read = run.engine, Operators(), Operators(), Tensor.tolist
    backward, end = made.backward, made.step

    def noted(x: Tensor) -> object:
        counted.reads[place()] += 1
        return read(x)

    def backward_counted(loss: Tensor) -> None:
        hooks.places.clear()  # of the last slot
        with hooks:
            backward(loss)

    def end_counted(*args: object, **named: object) -> StepReport:
        with mock.patch.object(Tensor, "tolist", noted), counted:
            return end(*args, **named)

    for step in range(2):
        if step:
            made.backward, made.step = backward_counted, end_counted
        batches = [made_batch(recipe, step, slot) for slot in range(slots)]
        assert run.stepper.step(batches, run.schedules.at(step)).applied
    of_hooks = {where: n for where, n in hooks.places.items() if where.startswith(ZERO)}
    return {"end": counted.places, "reads": counted.reads + hooks.reads, "hooks": Counter(of_hooks)}


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine.start_processes("cpu")
    stages, slots = wanted["stages"], wanted["slots"]
    result = {stage: step_end(stage, slots, wanted["checks"]) for stage in stages}
    if dist.is_main():
        (out / "result.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
