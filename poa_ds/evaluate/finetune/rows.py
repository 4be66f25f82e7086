"""Accuracies of fine-tunings: those of a fine-tuning along its way, and what the run gets of them.

In the fine-tuning's own folder `step` is its own; in the run's it is that of the teacher which the
fine-tuning began with, `chosen_by` says which of the former.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.finetune.accuracy import Counts
from poa_ds.evaluate.score_rows import BEST_ON_VAL, ScoreRow
from poa_ds.recipe.tree import Recipe
from poa_ds.system.run_folder import RunFolder

KIND, LAST = "finetune", "last"


def own(files: RunFolder) -> list[ScoreRow]:
    """The rows of a fine-tuning's folder."""
    return [row for row in score_rows.read(files.evaluations) if row.kind == KIND]


def of_counts(
    step: int, size: str, found: Counts, recipe: Recipe, seconds: float
) -> Iterable[ScoreRow]:
    """One for each metric, after that step of a fine-tuning."""
    images = int(found.images.sum())
    values = {"top1": found.top1, "mean_per_class": found.mean_per_class}
    for metric, value in values.items():
        yield ScoreRow(
            kind=KIND,
            step=step,
            size=size,
            metric=metric,
            value=value,
            error=results.error(value, images) if metric == "top1" else None,
            set="val",
            chosen_by="",
            setting={},
            seconds=seconds,
            protocol={
                "val": {"images": images},
                "resize": recipe.evaluation.resize,
                "crop": recipe.evaluation.crop,
                "precision": recipe.precision,
            },
            torch=torch.__version__,
        )


def of_run(
    rows: Iterable[ScoreRow],
    *,
    step: int,
    metric: str,
    named: str,
    setting: Mapping[str, Any],
    protocol: Mapping[str, Any],
    seconds: float,
) -> list[ScoreRow]:
    """The run's rows of a fine-tuning with these rows: after its last step, and the best on val.

    named: the metric's name in the run's file. step: of the run's teacher.
    """
    there = [row for row in rows if row.metric == metric]
    last = max(there, key=lambda row: row.step)
    best = max(there, key=lambda row: row.value)
    found = []
    for chosen_by, row in ((LAST, last), (BEST_ON_VAL, best)):
        found.append(
            ScoreRow(
                kind=KIND,
                step=step,
                size=row.size,
                metric=named,
                value=row.value,
                error=row.error,
                set="val",
                chosen_by=chosen_by,
                setting={**setting, "at step": row.step},
                seconds=seconds,
                protocol=protocol,
                torch=row.torch,
            )
        )
    return found
