"""What the ranks of test_every_method.py run: one method in bf16 under every stage, and resumed.

python -m tests.distributed.programs.every_method OUT '{"recipe": {...}, "source": ""}'
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from poa_ds.engine import engine
from poa_ds.recipe.tree import Recipe
from poa_ds.system import dist
from tests.distributed.programs.worker import Run, recipe_with

SAVED, LAST = 2, 3  # steps
CONTINUED = ((1, 3), (3, 3))  # (stage, that of the checkpoint)


def with_checkpointing(recipe: Recipe, precision: str) -> Recipe:
    """The recipe whose blocks are computed again in the backward pass."""
    again = replace(recipe.backbone, activation_checkpointing=True)
    return replace(recipe, backbone=again, precision=precision)


def two_ranks(recipe: Recipe, out: Path) -> dict[str, list[dict]]:
    half, found = with_checkpointing(recipe, "bf16"), {}
    for stage in (1, 2, 3):
        run = Run(stage, half)
        found[f"{stage}"] = run.steps(0, SAVED)
        run.save(out / f"stage{stage}", SAVED)
        found[f"{stage}+"] = run.steps(SAVED, LAST)
    for stage, source in CONTINUED:
        found[f"{stage}<{source}"] = continued(stage, half, out / f"stage{source}")
    found["fp32"] = Run(3, with_checkpointing(recipe, "fp32")).steps(0, SAVED)
    return found


def continued(stage: int, recipe: Recipe, source: Path) -> list[dict]:
    """The next steps; loading compares every tensor with what was saved, to the bit."""
    run = Run(stage, recipe)
    assert run.load(source).step == SAVED
    return run.steps(SAVED, LAST)


def one_process(recipe: Recipe, source: Path) -> dict[str, list[dict]]:
    half = with_checkpointing(recipe, "bf16")
    return {
        "plain": Run(0, recipe).steps(0, SAVED),
        "continued": continued(2, half, source / "stage3"),
    }


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine.start_processes("cpu")
    recipe = recipe_with(**wanted["recipe"])
    alone = dist.world_size() == 1
    found = one_process(recipe, Path(wanted["source"])) if alone else two_ranks(recipe, out)
    if dist.is_main():
        (out / "result.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
