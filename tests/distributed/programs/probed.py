"""What the ranks of test_online_ranks.py run: the same steps without and with the online probe.

python -m tests.distributed.programs.probed OUT '{"recipe": {...}, "stages": [2, 3]}'
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from poa_ds.engine import engine
from poa_ds.recipe.tree import Evaluation
from poa_ds.system import dist
from tests.distributed.programs.worker import Run, recipe_with

SAVED, LAST, POISONED = 3, 4, 1  # steps


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine.start_processes("cpu")
    recipe, found = recipe_with(**wanted["recipe"]), {}
    plain = replace(recipe, evaluation=Evaluation())
    for stage in wanted["stages"]:
        found[f"{stage} without"] = Run(stage, plain).steps(0, SAVED, poison=POISONED)
        run = Run(stage, recipe)
        found[f"{stage} with"] = run.steps(0, SAVED, poison=POISONED)
    run.save(out / "saved", SAVED)
    found["on"] = run.steps(SAVED, LAST)
    again = Run(wanted["stages"][-1], recipe)
    again.load(out / "saved")
    found["resumed"] = again.steps(SAVED, LAST)
    if dist.is_main():
        (out / "result.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
