"""What test_step_end.py runs: an engine of ViT-L's structure, whose end of a step is counted.

python -m tests.distributed.programs.step_end OUT '{"stages": [2], "bf16": {}}'
"""

import json
import sys
import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import deepspeed
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from poa_ds.engine import engine
from poa_ds.engine.engine import Engine, Update
from poa_ds.methods.method import method
from poa_ds.recipe import ds_json
from poa_ds.system import dist
from tests.distributed.programs.worker import recipe_with
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


def step_end(stage: int, bf16: dict) -> dict[str, Counter[str]]:
    """Of the second step, what its end asks for and what DeepSpeed's hooks do in a backward pass.

    bf16: keys of DeepSpeed's section in place of ours.
    """
    recipe = recipe_with(
        precision="bf16",
        backbone__depth={"min": 24, "max": 24, "step": 1},
        heads__prototypes=[48, 48, 48, 48],
    )
    file = {"zero_optimization": {"stage": stage}}
    if stage == 1:
        file["data_types"] = {"grad_accum_dtype": "bf16"}
    ds_config = ds_json.resolved(recipe, file, dist.world_size())
    ds_config["bf16"] |= bf16
    ds_config["train_batch_size"] = ds_config["train_micro_batch_size_per_gpu"]
    ds_config["gradient_accumulation_steps"] = 1
    made = Engine(method(recipe).networks(), recipe.optimizer, ds_config)
    hooks, counted, read = Operators(), Operators(), Tensor.tolist

    def noted(x: Tensor) -> object:
        counted.reads[place()] += 1
        return read(x)

    for step in range(2):
        loss = made.forward(lambda n: sum(p.sum() for p in n.trained().values()) * 1e-3)
        with hooks if step else nullcontext():
            made.backward(loss)
        update = Update(1e-3, 0.04, 0.99, {"last_layer": 0.0})
        if step:
            with mock.patch.object(Tensor, "tolist", noted), counted:
                report = made.step(update, finite=loss.detach().isfinite())
            assert report.applied
        else:
            made.step(update)
    of_hooks = {where: n for where, n in hooks.places.items() if where.startswith(ZERO)}
    return {"end": counted.places, "reads": counted.reads + hooks.reads, "hooks": Counter(of_hooks)}


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine.start_processes("cpu")
    result = {stage: step_end(stage, wanted["bf16"]) for stage in wanted["stages"]}
    if dist.is_main():
        (out / "result.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
