"""poa-ds plan: memory, time and waiting of a run on GPUs that are not here.

What follows from the recipe's shapes is counted, the rest estimated, from constants that were
measured on such a GPU where there are any.
"""

import argparse
import json
from pathlib import Path

from poa_ds.data.places import open_training
from poa_ds.plan import measured, report
from poa_ds.plan.constants import GENERAL, GPUS
from poa_ds.plan.plan import Plan, Request, plan
from poa_ds.plan.step_time import Cluster
from poa_ds.recipe import checks, ds_json, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system import paths
from poa_ds.system.arguments import count, positive
from poa_ds.system.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds plan`."""
    parser.add_argument("--config", type=paths.path, required=True, metavar="RECIPE.yaml")
    parser.add_argument("--nodes", type=count, required=True, metavar="N")
    parser.add_argument("--gpus", type=count, required=True, metavar="N", help="of each node")
    parser.add_argument(
        "--gpu", choices=list(GPUS), default="a100-80g", help="kind of GPU (%(default)s)"
    )
    parser.add_argument(
        "--network-gbps",
        type=positive,
        metavar="G",
        help="Gbit/s of a node, all ports together (one InfiniBand port of 200 for each A100, of"
        " 400 for each H100 or H200; one Ethernet port: 100, 25, ...)",
    )
    parser.add_argument(
        "--images", type=count, metavar="N", help="of the training set (counted where it is here)"
    )
    parser.add_argument(
        "--images-per-core",
        type=positive,
        default=GENERAL["images_per_core"].value,
        metavar="R",
        help="images/s of a loader's core, as `poa-ds bench data` measures it (%(default)g)",
    )
    parser.add_argument(
        "--deepspeed_config", type=paths.path, metavar="FILE.json", help="buckets and other options"
    )
    parser.add_argument(
        "--measured",
        type=paths.path,
        metavar="FILE",
        help="constants of this kind of GPU that `poa-ds bench gpu` has measured: its plan.json",
    )
    parser.add_argument("--json", action="store_true", help="print all numbers, in bytes, seconds")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. draws=per_slot")


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    found = prepare(args)
    print(json.dumps(report.record(found), indent=1) if args.json else report.text(found))
    return 0


def prepare(args: argparse.Namespace) -> Plan:
    """The plan of a command line; UsageError where the training would refuse it too."""
    recipe = load.recipe(args.config, args.overrides)
    gbps = args.network_gbps or args.gpus * GPUS[args.gpu].port.value
    found = measured.of_kind(args.gpu, args.measured)
    cluster = Cluster(args.gpu, args.nodes, args.gpus, gbps, found)
    _check_world(recipe, cluster)
    ds_file = ds_json.read(args.deepspeed_config)
    images, images_from = _images(recipe, args.images)
    request = Request(
        source=str(args.config),
        recipe=recipe,
        cluster=cluster,
        images=images,
        images_from=images_from,
        images_per_core=args.images_per_core,
        ds_file=ds_file,
        ds_name=str(args.deepspeed_config or "without --deepspeed_config"),
    )
    return plan(request)


def _check_world(recipe: Recipe, cluster: Cluster) -> None:
    try:
        checks.check_world(recipe, cluster.world)
    except UsageError as error:
        nodes = [n for n in range(1, 1 + recipe.batch.slots) if _divides(recipe, cluster, n)]
        fitting = f"{', '.join(map(str, nodes))} nodes fit" if nodes else "no number of nodes fits"
        raise UsageError(f"{error}; with --gpus {cluster.per_node}: {fitting}") from error


def _divides(recipe: Recipe, cluster: Cluster, nodes: int) -> bool:
    return recipe.batch.slots % (nodes * cluster.per_node) == 0


def _images(recipe: Recipe, given: int | None) -> tuple[int, str]:
    """(images of the training set, where the number comes from)."""
    data = recipe.data
    if given:
        return given, "--images"
    if data.mode == "stream":
        return data.images, "data.images"
    if not data.mix and data.train and Path(data.train).exists():
        return len(open_training(data)), data.train
    place = data.train or "data.train"
    assumed = int(GENERAL["imagenet"].value)
    return assumed, f"assumed: ImageNet-1K, as {place} is not here; --images N says otherwise"
