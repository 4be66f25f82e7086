"""poa-ds eval finetune: sizes of a run learn whole from labels, each in a training of its own.

The training is poa_ds.train's, with the method `finetune` and a recipe made from the run's: it is
launched, watched, stopped, saved and continued as any other.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from poa_ds import train
from poa_ds.evaluate.finetune import recipes
from poa_ds.evaluate.finetune.options import add_arguments, check_options
from poa_ds.evaluate.finetune.recipes import Job, Settings
from poa_ds.recipe import derived, ds_json
from poa_ds.recipe.tree import Recipe
from poa_ds.run import exit_status, faults
from poa_ds.run.apart import apart
from poa_ds.system import rendezvous
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.run_folder import RunFolder

EXAMPLE = f"""{exit_status.TABLE}

example (one process; on a CPU put DS_ACCELERATOR=cpu before it):
  poa-ds eval finetune runs/s16 --sizes small --train shards/train --val shards/val
  deepspeed --num_gpus 8 --module poa_ds.finetune runs/s16 --sizes small \\
      --train shards/train --val shards/val --deepspeed_config zero2"""


def run(args: argparse.Namespace) -> int:
    """Fine-tune and measure each size, add rows to the run's evaluations.jsonl.

    75 after SIGTERM: the same command goes on.
    """
    rendezvous.prepare_environment()
    found = trainings(args)
    if args.deepspeed_config:
        ds_json.read(args.deepspeed_config)  # what is wrong with it is told before all else
    if os.environ["RANK"] == "0":
        tell(described(found))
    if args.dry_run:
        return exit_status.DONE
    if len(found) > 1 and os.environ["WORLD_SIZE"] != "1":
        raise UsageError(
            f"--sizes: {len(found)} sizes, and a launcher has started {os.environ['WORLD_SIZE']}"
            " ranks: give one size; each is a training of its own"
        )
    if len(found) == 1:
        return found[0].run(args)
    for training in found:  # not behind hours of another size
        training.check_start()
    for training in found:
        if status := apart(_alone, args, str(training.job.subnet)):  # DeepSpeed begins only once
            return status
    return exit_status.DONE


def _alone(args: argparse.Namespace, size: str) -> None:
    args.sizes = size
    _end(_reported(args))


def _reported(args: argparse.Namespace) -> int:
    try:
        return run(args)
    except (UserError, faults.Fault, KeyboardInterrupt) as error:
        return faults.report(error)


def _end(status: int) -> None:
    if status:
        faults.leave(status)
    sys.exit(status)


def trainings(args: argparse.Namespace) -> list["Training"]:
    """One for each size that is asked for. UsageError, UserError: one of them cannot begin."""
    from poa_ds.checkpoint.deployed import find_teacher, read_recipe, weights_hash
    from poa_ds.data.places import open_folder

    teacher = find_teacher(args.run, args.step)
    recipe, step = read_recipe(teacher / "config.json")
    places = {
        "train": recipe.evaluation.bank or recipe.data.train,
        "val": recipe.evaluation.queries,
    }
    for name in places:
        places[name] = getattr(args, name) or places[name]
        if not places[name]:
            raise UsageError(f"the run's recipe names no such images: give --{name} SHARDS")
    indexes = RunFolder.around(teacher).images
    folder = open_folder(places["train"], recipe.data, indexes)
    given = {
        field.name: getattr(args, field.name)
        for field in fields(Settings)
        if getattr(args, field.name) is not None
    }
    projected = _projected(args, teacher, recipe)
    subnets = derived.space(recipe).select(args.sizes or [*recipe.backbone.names] or ["all"])
    derived.check_trained(recipe, subnets)
    found = []
    for subnet in subnets:
        row = recipes.nearest(recipe, subnet, args.recipe)
        check_options(args, replace(row.settings, **given), subnet)
        job = Job(
            recipe,
            subnet,
            "" if args.random_weights else f"{teacher}:{subnet}",
            replace(row.settings, **given),
            str(places["train"]),
            str(places["val"]),
            len(folder.classes),
            subset=args.subset,
            slots=args.slots or 0,
            cosine=recipes.PUBLISHED_COSINE if args.published_cosine else 0.0,
            seed=args.seed,
            precision=args.precision or _precision(recipe),
            workers=recipe.data.workers if args.workers is None else args.workers,
            drop_unknown_classes=args.drop_unknown_classes,
            projected=projected,
        )
        about = {"weights_sha256": weights_hash(teacher), "recipe": row.title, "given": given}
        found.append(Training(job, RunFolder.around(teacher), step, about))
    return found


def _projected(args: argparse.Namespace, teacher: Path, recipe: Recipe) -> int:
    """Channels of the layer of the run's head that the classifier stands on; 0: of none.

    UsageError: the run has no such head, and it was asked for.
    """
    from poa_ds.checkpoint.deployed import WEIGHTS
    from poa_ds.methods import frozen_head

    few = args.recipe == recipes.FEW
    if args.head_layer == 0 or not (args.head_layer or few):
        return 0
    why = f"{teacher} has no projection head with prototypes"
    if recipe.heads.elastic == "own":
        why = f"smaller sizes of {teacher} learnt with heads that were not kept (heads.elastic=own)"
    elif frozen_head.has_one(teacher / WEIGHTS):
        return frozen_head.first_width(recipe)
    if args.head_layer:
        raise UsageError(f"--head-layer 1: {why}; 0 lets the classifier stand on the class feature")
    say(f"{why}: the classifier stands on the class feature")
    return 0


def _precision(recipe: Recipe) -> str:
    import torch

    return recipe.precision if torch.cuda.is_available() else "fp32"


class Training:
    """The fine-tuning of one size: its recipe, its folder, and what its rows say."""

    def __init__(self, job: Job, folder: RunFolder, step: int, about: dict[str, Any]) -> None:
        from poa_ds.data.places import open_folder
        from poa_ds.evaluate.finetune.images import learnt_from, measured_on
        from poa_ds.evaluate.score_rows import identity

        self.job, self.folder, self.step = job, folder, step
        recipe = job.recipe("")
        whole, val = (open_folder(x, recipe.data, folder.images) for x in (job.train, job.val))
        learnt = learnt_from(whole, recipe)
        asked = measured_on(val, learnt, drop=job.drop_unknown_classes)
        self.images = len(learnt)
        self.protocol = recipes.protocol(recipe) | {
            "given": about["given"],
            "train": {"images": len(learnt), "of": len(whole), "index_sha256": whole.hash},
            "val": asked.record(),
        }
        self.setting = {"recipe": about["recipe"], **recipes.numbers(recipe)}
        words = [self.protocol, self.setting, about["weights_sha256"]]
        place = f"step{step:08d}-{job.subnet.label}-{identity({'all': words})}"
        self.output = RunFolder(folder.finetune / place)
        self.recipe = job.recipe(str(self.output.path))

    def run(self, args: argparse.Namespace) -> int:
        """Train to the end; the exit status. Rank 0 adds what came of it to the run's rows."""
        ds_file, source = self._deepspeed(args)
        try:
            status = train.trained(self.recipe, ds_file, source=source)
        except faults.Fault as error:
            status = faults.report(error)
        if status:
            return status
        if os.environ["RANK"] == "0":
            self._keep(args)
        return exit_status.DONE

    def named(self, metric: str) -> str:
        """The metric's name in the run's rows: what few labels or random weights give is apart."""
        from poa_ds.evaluate.score_rows import OF_RANDOM

        return metric + recipes.amount(self.recipe) + ("" if self.recipe.start else OF_RANDOM)

    def check_start(self) -> None:
        """UserError: the run has no network that this training could begin with."""
        from poa_ds.export import start
        from poa_ds.recipe.backbone import backbone

        if self.recipe.start:
            projected = self.recipe.finetune.projected
            start.check(backbone(self.recipe), self.recipe.start, projected=projected)

    def _deepspeed(self, args: argparse.Namespace) -> tuple[dict, str]:
        """(content, name) of the file: zero2 where stage 0 is not possible."""
        alone = os.environ["WORLD_SIZE"] == "1" and self.recipe.precision == "fp32"
        path = args.deepspeed_config or (None if alone else Path("zero2"))
        return ds_json.read(path), str(path or "without --deepspeed_config")

    def _keep(self, args: argparse.Namespace) -> None:
        from poa_ds.evaluate import score_rows, score_table
        from poa_ds.evaluate.finetune import rows
        from poa_ds.run.closing import busy_seconds
        from poa_ds.system import events
        from poa_ds.track.metrics_file import read_rows

        own = rows.own(self.output)
        seconds = busy_seconds(read_rows(self.output.metrics), events.read(self.output.events))
        found = rows.of_run(
            own,
            step=self.step,
            metric=args.metric,
            named=self.named(args.metric),
            setting=self.setting,
            protocol=self.protocol,
            seconds=seconds,
        )
        there = score_rows.read(self.folder.evaluations)
        fresh = [row for row in found if not any(same(row, other) for other in there)]
        if fresh:
            score_table.keep(fresh, self.folder.evaluations, args)
        else:
            tell(f"{score_table.table(found)}\n{self.folder.evaluations} has it already")


def described(found: Sequence[Training]) -> str:
    """What each size costs, by the recipe that it takes."""
    lines = []
    for training in found:
        job, recipe = training.job, training.recipe
        steps = derived.of(recipe, training.images).steps
        batch = recipe.batch.slots * recipe.batch.images_per_slot
        shape, side = derived.shape(recipe), recipe.crops.global_size
        flops = 3.0 * steps * batch * shape.flops(derived.space(recipe).intact, side)
        numbers = ", ".join(f"{k} {v}" for k, v in training.setting.items() if k != "recipe")
        start = "" if recipe.start else " from random weights"
        lines.append(
            f"{job.subnet}{start}, as {training.setting['recipe']}: {steps:,} steps x {batch:,}"
            f" images = {flops:.2g} FLOPs; {numbers}\n  {training.output.path}"
        )
    return "\n".join(lines)


def same(row: Any, other: Any) -> bool:
    """Whether two rows say the same of the same training."""
    keys = ("kind", "step", "size", "metric", "set", "chosen_by", "value", "setting", "protocol")
    return all(getattr(row, key) == getattr(other, key) for key in keys)


def main(argv: Sequence[str] | None = None) -> int:
    """The program under a launcher; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m poa_ds.finetune",
        description="Fine-tune one size of a run; the same command continues a stopped training.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    return _reported(parser.parse_args(sys.argv[1:] if argv is None else list(argv)))


if __name__ == "__main__":
    _end(main())
