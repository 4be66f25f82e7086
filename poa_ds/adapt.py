"""poa-ds adapt: from weights that exist and a folder of images to a run of all sizes.

Stages that any user could type, in order: shard, import, before, train, table, report. What is done
stays done: the same command goes on where it was ended.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from poa_ds.checkpoint.deployed import read_recipe
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.manifest import MANIFEST
from poa_ds.evaluate.embed import sources as image_sources
from poa_ds.export import adapted, import_weights, weights_source
from poa_ds.plan.constants import GPUS
from poa_ds.recipe import checks, derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.run import exit_status
from poa_ds.system import files, json_text, lock, paths, stopping
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.run_folder import RunFolder

RECIPE = Path("elastic_any_folder")  # shipped
LOCK, ASKED = "adapt_lock.json", "adapt.json"
ORDER = ("shard", "import", "before", "train", "table", "report")
PLANNED = "a100-80g"  # the GPU of the estimate
PASSES = 4  # of a network for one that learns and one that teaches: 3 and 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds adapt`."""
    parser.add_argument(
        "--weights",
        type=weights_source.named,
        required=True,
        metavar="SOURCE",
        help="timm:NAME, a .safetensors or .pth file, or a folder, as `poa-ds import` reads them",
    )
    parser.add_argument(
        "--images",
        type=paths.path,
        required=True,
        metavar="DIR",
        help="a tree of images, or train and val in it (labels then give k-NN); or their shards",
    )
    parser.add_argument("--out", type=paths.path, required=True, metavar="RUN")
    parser.add_argument(
        "--config",
        type=paths.path,
        default=RECIPE,
        metavar="RECIPE.yaml",
        help="rates and lengths; network, pixels and places are put into it (%(default)s)",
    )
    parser.add_argument(
        "--rebase",
        choices=("none", "sort", "rotate"),
        default="rotate",
        help="the basis in which sizes are cut (%(default)s)",
    )
    import_weights.add_options(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the stages with sizes and cost, and stop"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the training, as poa_ds.train's"
    )


@dataclass(frozen=True)
class Job:
    """What was asked, and where each part of it is."""

    args: argparse.Namespace

    @property
    def out(self) -> Path:
        return self.args.out

    @property
    def start(self) -> Path:
        return self.out / "start"

    @property
    def recipe(self) -> Path:
        return self.out / "adapt.yaml"

    def sources(self) -> dict[str, Path]:
        """Split -> its folder of images or shards."""
        images = self.args.images
        if not images.is_dir():
            raise UsageError(f"--images {images}: no such folder")
        parts = {name: images / name for name in ("train", "val") if (images / name).is_dir()}
        return parts if "train" in parts else {"train": images}

    def shards(self) -> dict[str, Path]:
        """Split -> where its shards are, or will be."""
        return {
            name: place if (place / MANIFEST).is_file() else self.out / "shards" / name
            for name, place in self.sources().items()
        }

    def words(self) -> dict[str, object]:
        """What a continuation must ask for too."""
        keys = "weights images config rebase widths depths image_size head_dim input_scale mean std"
        found = {key: getattr(self.args, key) for key in keys.split()}
        found |= {"overrides": self.args.overrides}
        return json.loads(json.dumps(found, default=str))


def run(args: argparse.Namespace) -> int:
    """Every stage that is not done yet; the exit status of the one that failed, or 0."""
    job = Job(args)
    adapted.check(args.overrides)
    load.recipe(args.config, args.overrides)
    if args.dry_run:
        tell(described(job))
        return 0
    with lock.held(args.out, "an adaptation", lost=_taken_over, name=LOCK):
        _same_words(job)
        tell(described(job))  # mistakes are told before any work, and before they are noted
        files.replace_text(job.out / ASKED, json.dumps(job.words(), indent=1) + "\n")
        return _stages(job)


def _taken_over(message: str) -> None:
    say(f"poa-ds adapt: error: {message}")
    os.kill(os.getpid(), signal.SIGTERM)


def _same_words(job: Job) -> None:
    """UsageError where the folder was begun with other arguments, naming them."""
    path, words = job.out / ASKED, job.words()
    if not path.is_file():
        return
    before = json_text.parse_object(path.read_bytes())
    changed = [key for key in words if before.get(key) != words[key]]
    if changed:
        told = ", ".join(f"{key} {before.get(key)} and now {words[key]}" for key in changed)
        raise UsageError(f"{job.out} was begun with {told}: name another --out")


def _stages(job: Job) -> int:
    work: dict[str, Callable[[Job], int]] = {
        **{"shard": _shard, "import": _import, "before": _before},
        **{"train": _train, "table": _table, "report": _report},
    }
    for number, stage in enumerate(ORDER, 1):
        for request in (signal.SIGINT, *stopping.requests()):  # a launcher keeps them to itself
            signal.signal(request, signal.default_int_handler)
        tell(f"\n[{number}/{len(ORDER)}] {stage}")
        try:
            status = work[stage](job)
        except (UserError, KeyboardInterrupt):
            say(f"poa-ds adapt: in the stage `{stage}`; the same command goes on there")
            raise
        if status:
            say(
                f"poa-ds adapt: the stage `{stage}` ended with status {status}, see above; the same"
                " command goes on there"
            )
            return status
    return 0


def _call(*words: object) -> int:
    """One command of poa-ds in this process, as a user would type it; its exit status."""
    from poa_ds import cli

    command = [*map(str, words)]
    tell(f"$ poa-ds {shlex.join(command)}")
    return cli.main(command)


def _shard(job: Job) -> int:
    for name, place in job.sources().items():
        out = job.shards()[name]
        if (out / MANIFEST).is_file():
            tell(f"{out} is there")
            continue
        if status := _call("shard", "folder", "--root", place, "--out", out):
            return status
    return 0


def _import(job: Job) -> int:
    if job.start.is_dir():
        tell(f"{job.start} is there")
        return 0
    partial = job.out / "start.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was ended in the middle
    rebase = ["--rebase", job.args.rebase]
    if job.args.rebase != "none":
        rebase += ["--calibrate", str(job.shards()["train"])]
    given = import_weights.given_options(job.args)
    if status := _call("import", job.args.weights, "--out", partial, *rebase, *given):
        return status
    files.publish_folder(partial, job.start)
    return 0


def _measured(job: Job) -> bool:
    """Whether both splits are there with labels, which k-NN needs."""
    shards = job.shards()
    return "val" in shards and all((ShardFolder.open(x).labels >= 0).any() for x in shards.values())


def _before(job: Job) -> int:
    """k-NN of the sizes before they learn."""
    if not _measured(job):
        tell(f"no k-NN: {job.args.images} has no labelled train and val")
        return 0
    if RunFolder(job.start).knn.is_file():
        tell(f"{RunFolder(job.start).knn} is there")
        return 0
    shards, options = job.shards(), load.recipe(job.args.config, job.args.overrides)
    where = ("--bank", shards["train"], "--queries", shards["val"])
    return _call("eval", "knn", job.start, *where, "--workers", options.data.workers)


def _train(job: Job) -> int:
    ended = exit_status.read(job.out)
    if ended and ended.status == exit_status.DONE:
        tell(f"done, at step {ended.step:,}")
        return 0
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # k-NN's, which the ranks need
    network, _ = read_recipe(job.start / "config.json")
    images = len(ShardFolder.open(job.shards()["train"]))
    files.replace_text(job.recipe, load.to_yaml(recipe_of(job, network, images)))
    return _call("launch", "--", "--config", job.recipe, "--deepspeed_config", "zero2")


def _table(job: Job) -> int:
    return _call("sizes", job.out)


def _report(job: Job) -> int:
    return _call("report", job.out, "--out", RunFolder(job.out).report)


def recipe_of(job: Job, network: Recipe, images: int) -> Recipe:
    """The recipe that --config and the overrides give, for this network and this data.

    The queue is at most half of the images, whole steps. On a CPU everything is fp32, unless an
    override asks for another precision. UsageError: what does not go together.
    """
    import torch

    base, shards = load.recipe(job.args.config, job.args.overrides), job.shards()
    queue = derived.longest_queue(base, images) or base.distill.queue  # then told as too long
    crops, pixels, seen = network.crops, network.augmentation, network.evaluation
    training = {key: getattr(base.backbone, key) for key in adapted.TRAINING}
    kept = torch.cuda.is_available() or any(x.startswith("precision=") for x in job.args.overrides)
    found = replace(
        base,
        output_dir=str(job.out),
        start=str(job.start),
        precision=base.precision if kept else "fp32",
        backbone=replace(network.backbone, **training),
        distill=replace(base.distill, teacher=str(job.start), queue=queue),
        crops=replace(base.crops, global_size=crops.global_size, local_size=crops.local_size),
        augmentation=replace(base.augmentation, mean=pixels.mean, std=pixels.std),
        data=replace(base.data, train=str(shards["train"])),
        evaluation=replace(
            base.evaluation,
            queries=str(shards["val"]) if _can_measure(job) else "",
            sizes=("all",),
            at_start=False,  # the stage `before` has measured the same
            resize=seen.resize,
            crop=seen.crop,
        ),
    )
    checks.check(found)
    checks.check_images(found, images)
    return found


def _can_measure(job: Job) -> bool:
    """As `_measured`, also before there are shards: then by the folders alone."""
    there = all((place / MANIFEST).is_file() for place in job.shards().values())
    return _measured(job) if there else "val" in job.sources()


def described(job: Job) -> str:
    """The stages, with sizes and cost."""
    shards, counts = job.shards(), _counts(job)
    if job.start.is_dir():
        network, _ = read_recipe(job.start / "config.json")
    else:
        _, _, network = import_weights.read(job.args, job.args.weights)
    recipe = recipe_of(job, network, counts["train"])
    space, steps = derived.space(recipe), derived.of(recipe, counts["train"]).steps
    done = {
        "shard": all((place / MANIFEST).is_file() for place in shards.values()),
        "import": job.start.is_dir(),
        "train": bool((e := exit_status.read(job.out)) and e.status == exit_status.DONE),
    }
    split = ", ".join(f"{count:,} images ({name})" for name, count in counts.items())
    knn = "k-NN of every size" if _can_measure(job) else "no k-NN: no labelled train and val"
    rows = recipe.batch.slots * recipe.batch.images_per_slot
    lines = {
        "shard": f"{job.args.images}: {split}",
        "import": f"{job.args.weights}: {len(space.subnets())} sizes from {space.smallest} to"
        f" {space.intact}, {recipe.crops.global_size} px, --rebase {job.args.rebase}",
        "before": f"{knn} before training",
        "train": f"{steps:,} steps of {rows} images ({recipe.schedule.epochs:g} epochs), method"
        f" {recipe.objective.method}; {_cost(recipe, steps)}",
        "table": f"every size with its cost{' and k-NN' if _can_measure(job) else ''}",
        "report": str(RunFolder(job.out).report),
    }
    return "\n".join(
        f"{stage:<8}{'done: ' if done.get(stage) else ''}{text}" for stage, text in lines.items()
    )


def _counts(job: Job) -> dict[str, int]:
    """Images of each split, in its shards or its folder."""
    found = {}
    for name, place in job.sources().items():
        shards = job.shards()[name]
        made = (shards / MANIFEST).is_file()
        found[name] = len(ShardFolder.open(shards) if made else image_sources.below(place))
    return found


def _cost(recipe: Recipe, steps: int) -> str:
    """Counted operations of the networks, and what that is on one GPU."""
    shape, space = derived.shape(recipe), derived.space(recipe)
    side, sizes = recipe.crops.global_size, space.subnets()
    drawn = sum(shape.flops(subnet, side) for subnet in sizes) / len(sizes)
    a_crop = PASSES * shape.flops(space.intact, side) + (PASSES - 1) * drawn
    total = 2 * recipe.batch.slots * recipe.batch.images_per_slot * steps * a_crop  # 2 crops
    rate = GPUS[PLANNED].peak.value * GPUS[PLANNED].efficiency.value
    hours = total / (rate * 1e12) / 3600
    return (
        f"{total:.3g} FLOPs counted, {hours:.2g} hours on one {PLANNED} (estimated; `poa-ds plan`"
        " says more)"
    )
