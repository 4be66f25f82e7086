"""Options of `poa-ds eval finetune`."""

import argparse
from dataclasses import fields

from poa_ds.evaluate.finetune import recipes
from poa_ds.evaluate.finetune.recipes import Settings
from poa_ds.model.space import Subnet
from poa_ds.system import arguments, paths
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError

METRICS = ("top1", "mean_per_class")
HELP = {
    "batch": "images of a step",
    "epochs": "",
    "lr": "at its peak, whatever the batch is",
    "layer_decay": "factor on the rate from one block to the one before",
    "drop_path": "stochastic depth",
    "warmup": "share of the epochs in which the rate rises from 0",
    "min_lr": "at the end of the cosine",
    "weight_decay": "of matrices alone",
    "ema": "momentum of the averaged weights, which are measured",
    "mixup": "alpha, 0: none",
    "cutmix": "alpha, 0: none",
    "smoothing": "of labels",
    "policy": "of changes to a crop, in timm's words; '' for none",
    "erase": "probability that a box of a crop becomes noise",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval finetune`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument(
        "--sizes", help="names and WIDTHxDEPTH, by commas, one after the other (recipe's names)"
    )
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--train", type=paths.place, metavar="SHARDS", help="to learn from (recipe's)"
    )
    parser.add_argument(
        "--val", type=paths.place, metavar="SHARDS", help="to measure on (recipe's)"
    )
    parser.add_argument(
        "--recipe",
        choices=recipes.RECIPES,
        default=recipes.IMAGENET,
        help="POA's numbers for ImageNet, few labels of it, or transfer of ViTs (%(default)s)",
    )
    parser.add_argument(
        "--subset",
        type=arguments.share_or_file,
        default=1.0,
        metavar="SHARE|FILE",
        help="of each class to learn from, such as 10%%; or a file of image names, one a line",
    )
    parser.add_argument(
        "--head-layer",
        type=int,
        choices=(0, 1),
        help="what the classifier stands on: 0 the class feature, 1 the first layer of the run's "
        "projection head (1 with --recipe few where the run has one, else 0)",
    )
    parser.add_argument(
        "--drop-unknown-classes",
        action="store_true",
        help="leave out, and count, images to measure on of classes that are not learnt from",
    )
    _add_numbers(parser)
    parser.add_argument(
        "--published-cosine",
        action="store_true",
        help=f"lay the cosine over {recipes.PUBLISHED_COSINE} epochs and cut it",
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="start without the run: what it is worth"
    )
    parser.add_argument("--metric", choices=METRICS, default="top1", help="(%(default)s)")
    _add_process(parser)


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("in the place of the recipe's numbers")
    for field in fields(Settings):
        kind = {"batch": arguments.count, "policy": str}.get(field.name, float)
        name = field.name.replace("_", "-")
        own.add_argument(f"--{name}", type=kind, metavar="X", help=HELP[field.name] or None)


def _add_process(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slots", type=arguments.count, help="parts of a step, for as many ranks at most (8)"
    )
    parser.add_argument("--workers", type=arguments.whole, help="loader processes (recipe's)")
    parser.add_argument("--seed", type=arguments.whole, default=0, help="(%(default)s)")
    parser.add_argument(
        "--precision", choices=("bf16", "fp16", "fp32"), help="(recipe's; on a CPU fp32)"
    )
    parser.add_argument("--deepspeed_config", type=paths.path, metavar="FILE.json")
    parser.add_argument("--dry-run", action="store_true", help="say what it costs, do nothing")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", action="store_true", help="print CSV, behind all else")
    output.add_argument("--json", action="store_true", help="print JSON, behind all else")
    # appended by launchers
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def check_options(args: argparse.Namespace, settings: Settings, subnet: Subnet) -> None:
    """UsageError: timm does not know the policy, or the average would never move. Said: an option
    changes nothing.
    """
    if not 0 <= settings.ema < 1:
        raise UsageError(f"--ema {settings.ema:g}: 0 to below 1, with 1 nothing learnt is measured")
    if args.published_cosine and settings.epochs >= recipes.PUBLISHED_COSINE:
        say(f"--published-cosine changes nothing: {subnet} learns for {settings.epochs:g} epochs")
    if args.policy:
        from timm.data import create_transform

        try:
            create_transform(32, is_training=True, auto_augment=args.policy)
        except (AssertionError, KeyError, ValueError) as error:
            raise UsageError(f"--policy {args.policy}: timm knows no such policy") from error
