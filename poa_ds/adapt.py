"""poa-ds adapt: from weights that exist and a folder of images to a run of all sizes.

Stages that any user could type, in order: shard, import, before, train, poa where it is asked for,
table, report. What is done stays done: the same command goes on where it was ended.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from poa_ds.checkpoint.deployed import read_recipe
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.manifest import MANIFEST
from poa_ds.evaluate.embed import sources as image_sources
from poa_ds.export import adapted, import_weights, weights_source
from poa_ds.export.adapt_job import POA, Job
from poa_ds.model.options import COLOURS
from poa_ds.plan import adaptation
from poa_ds.recipe import checks, derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.run import exit_status
from poa_ds.system import files, json_text, lock, paths, stopping
from poa_ds.system.arguments import positive
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.run_folder import RunFolder

RECIPE = Path("elastic_any_folder")  # shipped
LOCK, ASKED = "adapt_lock.json", "adapt.json"


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
        "--then-poa",
        type=positive,
        metavar="EPOCHS",
        help=f"train on as long by POA, with a teacher that moves along, to RUN/{POA} (not at all)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the stages with sizes and cost, and stop"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the training, as poa_ds.train's"
    )


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
    if before.get(POA) is None and POA in changed:
        changed.remove(POA)  # a stage more
    if changed:
        told = ", ".join(f"{key} {before.get(key)} and now {words[key]}" for key in changed)
        raise UsageError(f"{job.out} was begun with {told}: name another --out")


def _stages(job: Job) -> int:
    work: dict[str, Callable[[Job], int]] = {
        **{"shard": _shard, "import": _import, "before": _before},
        **{"train": _train, POA: _then_poa, "table": _table, "report": _report},
    }
    for number, stage in enumerate(job.stages, 1):
        for request in (signal.SIGINT, *stopping.requests()):  # a launcher keeps them to itself
            signal.signal(request, signal.default_int_handler)
        tell(f"\n[{number}/{len(job.stages)}] {stage}")
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
        kept = ["--as-is"] if job.args.range or job.args.channels not in (None, COLOURS) else []
        if status := _call("shard", "folder", "--root", place, "--out", out, *kept):
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


def _before(job: Job) -> int:
    """k-NN of the sizes before they learn."""
    if not job.measured():
        tell(f"no k-NN: {job.args.images} has no labelled train and val")
        return 0
    if RunFolder(job.start).knn.is_file():
        tell(f"{RunFolder(job.start).knn} is there")
        return 0
    shards, options = job.shards(), load.recipe(job.args.config, job.args.overrides)
    where = ("--bank", shards["train"], "--queries", shards["val"])
    return _call("eval", "knn", job.start, *where, "--workers", options.data.workers)


def _train(job: Job) -> int:
    return _trained(job, job.out, _recipes(job)[0])


def _then_poa(job: Job) -> int:
    return _trained(job, job.out / POA, _recipes(job)[1])


def _trained(job: Job, out: Path, recipe: Recipe) -> int:
    """One training to its end."""
    if ended := _done(out):
        tell(f"done, at step {ended.step:,}")
        return 0
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # k-NN's, which the ranks need
    kept = out / "adapt.yaml"
    out.mkdir(exist_ok=True)
    files.replace_text(kept, load.to_yaml(recipe))
    return _call("launch", "--", "--config", kept, "--deepspeed_config", "zero2")


def _done(out: Path) -> exit_status.Ended | None:
    """How the training there came to its end; None where it has not."""
    ended = exit_status.read(out)
    return ended if ended and ended.status == exit_status.DONE else None


def _table(job: Job) -> int:
    for out in job.runs:
        if status := _call("sizes", out):
            return status
    return 0


def _report(job: Job) -> int:
    return _call("report", *job.runs, "--out", RunFolder(job.out).report)


def _recipes(job: Job) -> list[Recipe]:
    """Of the trainings, once there are shards and the imported network."""
    network, _ = read_recipe(job.start / "config.json")
    return recipes_of(job, network, len(ShardFolder.open(job.shards()["train"])))


def recipes_of(job: Job, network: Recipe, images: int) -> list[Recipe]:
    """What --config and the overrides give for this network and this data, training by training.

    On a CPU everything is fp32, unless an override asks for another precision. UsageError: what
    does not go together.
    """
    import torch

    base, shards = load.recipe(job.args.config, job.args.overrides), job.shards()
    asked = any(x.startswith("precision=") for x in job.args.overrides)
    if not (asked or torch.cuda.is_available()):
        base = replace(base, precision="fp32")
    queries = str(shards["val"]) if job.can_measure() else ""
    places = adapted.Places(str(job.start), str(job.out), str(shards["train"]), queries)
    found = [adapted.filled(base, network, places, images)]
    if job.args.then_poa:
        found.append(adapted.then_poa(found[0], str(job.out / POA), job.args.then_poa))
    for recipe in found:
        checks.check(recipe)
        checks.check_images(recipe, images)
    return found


def described(job: Job) -> str:
    """The stages, with sizes and cost."""
    shards, counts = job.shards(), _counts(job)
    if job.start.is_dir():
        network, _ = read_recipe(job.start / "config.json")
    else:
        _, _, network = import_weights.read(job.args, job.args.weights)
    recipes = recipes_of(job, network, counts["train"])
    space, side = derived.space(recipes[0]), recipes[0].crops.global_size
    done = {
        "shard": all((place / MANIFEST).is_file() for place in shards.values()),
        "import": job.start.is_dir(),
        "train": bool(_done(job.out)),
        POA: bool(_done(job.out / POA)),
    }
    split = ", ".join(f"{count:,} images ({name})" for name, count in counts.items())
    knn = "k-NN of every size" if job.can_measure() else "no k-NN: no labelled train and val"
    trained = [_described(recipe, counts["train"]) for recipe in recipes]
    lines = {
        "shard": f"{job.args.images}: {split}",
        "import": f"{job.args.weights}: {len(space.subnets())} sizes from {space.smallest} to"
        f" {space.intact}, {side} px, --rebase {job.args.rebase}",
        "before": f"{knn} before training",
        "train": trained[0],
        POA: trained[-1],
        "table": f"every size with its cost{' and k-NN' if job.can_measure() else ''}",
        "report": str(RunFolder(job.out).report),
    }
    return "\n".join(
        f"{stage:<8}{'done: ' if done.get(stage) else ''}{lines[stage]}" for stage in job.stages
    )


def _described(recipe: Recipe, images: int) -> str:
    """One training, with its cost."""
    steps, batch = derived.of(recipe, images).steps, recipe.batch
    rows = batch.slots * batch.images_per_slot
    return (
        f"{steps:,} steps of {rows} images ({recipe.schedule.epochs:g} epochs), method"
        f" {recipe.objective.method}; {adaptation.cost(recipe, steps)}"
    )


def _counts(job: Job) -> dict[str, int]:
    """Images of each split, in its shards or its folder."""
    found = {}
    for name, place in job.sources().items():
        shards = job.shards()[name]
        made = (shards / MANIFEST).is_file()
        found[name] = len(ShardFolder.open(shards) if made else image_sources.below(place))
    return found
