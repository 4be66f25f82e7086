"""What a training has cost by a step: images, counted operations, seconds of its steps."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from poa_ds.recipe import load
from poa_ds.recipe.tree import Recipe
from poa_ds.system.typed_yaml import parse
from poa_ds.track import metrics_file


def images_per_step(recipe: Recipe) -> int:
    """Of all slots."""
    return recipe.batch.slots * recipe.batch.images_per_slot


def flops_per_step(recipe: Recipe) -> float:
    """Counted, two per multiply-add, the mean over the steps and the sizes that are drawn.

    UserError: the recipe's teacher, whose forward passes count, is not there.
    """
    objective = recipe.objective
    share = objective.slow_start  # of the steps, in which one student learns
    recipe = replace(recipe, output_dir="", seed=0, objective=replace(objective, slow_start=0.0))
    if not share:
        return _counted(load.to_yaml(recipe))
    alone = replace(
        recipe,
        heads=replace(recipe.heads, elastic="shared"),
        objective=replace(recipe.objective, method="single", koleo_students="all"),
    )
    together, apart = (_counted(load.to_yaml(r)) for r in (recipe, alone))
    return share * apart + (1 - share) * together


@cache
def _counted(text: str) -> float:
    from poa_ds.plan import step_time  # torch: seconds, which --help does without

    recipe = load.kept(parse(text, source="a recipe"))
    mean = step_time.draws(recipe, recipe.draws, 1).mean
    return recipe.batch.slots * step_time.work(recipe).flops(mean)


def seconds(path: Path) -> Mapping[int, float]:
    """Step of a metrics.jsonl -> time of all steps up to it, waiting for data included.

    A step without a row took the mean in the row behind it, which is of all since the row before.
    Evaluations and saves are not in it, nor the time between a stop and its continuation.
    """
    found, total, before = {}, 0.0, 0
    for row in metrics_file.read_rows(path) if path.is_file() else ():
        if "speed/step_ms" in row:
            for step in range(before + 1, row["step"] + 1):
                total += row["speed/step_ms"] / 1000
                found[step] = total
            before = row["step"]
    return found
