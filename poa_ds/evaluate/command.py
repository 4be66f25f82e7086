"""poa-ds eval: measures the sizes of a run, on one process or on all ranks of a launcher."""

import argparse
import dataclasses

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.data.places import open_folder
from poa_ds.evaluate import results
from poa_ds.evaluate.features import Readout, random_weights
from poa_ds.evaluate.knn import answers, knn, raw_pixel_floor, right_row
from poa_ds.evaluate.knn_protocol import KnnProtocol
from poa_ds.evaluate.ranks import all_ranks
from poa_ds.evaluate.results import KnnRow
from poa_ds.recipe import checks
from poa_ds.recipe.tree import Recipe
from poa_ds.system import dist, paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError
from poa_ds.system.progress import progress
from poa_ds.system.run_folder import RunFolder


def add_knn_arguments(parser: argparse.ArgumentParser, *, floors: bool = True) -> None:
    """Options of `poa-ds eval knn`. floors: whether they can be asked for."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument("--sizes", help="all, or names and WIDTHxDEPTH, by commas (recipe's)")
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument("--queries", type=paths.place, help="images (recipe's evaluation.queries)")
    parser.add_argument(
        "--bank", type=paths.place, help="images (recipe's evaluation.bank, or data.train)"
    )
    parser.add_argument("--query-images", type=int, help="evenly spread; 0 = all (recipe's)")
    parser.add_argument("--bank-images", type=int, help="evenly spread; 0 = all (recipe's)")
    parser.add_argument("--batch-size", type=int, help="images at a time (recipe's)")
    parser.add_argument("--workers", type=int, help="loader processes per rank (recipe's)")
    if floors:
        parser.add_argument(
            "--floors", action="store_true", help="also raw pixels and random weights"
        )


def run_knn(args: argparse.Namespace) -> int:
    """Measure, print a table, add a row to the run's knn.jsonl. Runs under torchrun as well."""
    with all_ranks() as device:
        model, recipe, step = load_teacher(args.run, args.step)
        recipe = overridden(recipe, args)
        options, readout = recipe.evaluation, Readout.of(recipe, device)
        subnets = model.space.select(args.sizes or options.sizes)
        indexes = RunFolder.around(find_teacher(args.run, args.step)).images
        bank = open_folder(options.bank or recipe.data.train, recipe.data, indexes)
        queries = open_folder(options.queries, recipe.data, indexes)
        protocol = KnnProtocol.of(bank, queries, options)
        protocol.say_doubts()
        bar = progress if dist.is_main() else None
        answered = answers(model.to(device), subnets, protocol, readout, progress=bar)
        found = {subnet: of_size.percent() for subnet, of_size in answered.items()}
        pixels, untrained = None, None
        if args.floors:
            pixels = raw_pixel_floor(protocol, readout, progress=bar)
            other = random_weights(recipe).to(device)
            untrained = knn(other, subnets, protocol, readout, progress=bar)
        how = protocol.record(readout.precision)
        row = KnnRow.of(step, how, found, raw_pixels=pixels, random_weights=untrained)
        if dist.is_main():
            folder = RunFolder.around(find_teacher(args.run, args.step))
            tell(results.table(row))
            results.append(folder.right, right_row(step, how, options.report_k, answered))
            results.append(folder.knn, row)
            tell(f"added to {folder.knn}")
    return 0


def overridden(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with the command's options in the place of its own."""
    names = ("queries", "bank", "query_images", "bank_images", "batch_size")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    data = {} if args.workers is None else {"workers": args.workers}
    recipe = dataclasses.replace(
        recipe,
        evaluation=dataclasses.replace(recipe.evaluation, **given),
        data=dataclasses.replace(recipe.data, **data),
    )
    for name, folder in (
        ("--queries", recipe.evaluation.queries),
        ("--bank", recipe.evaluation.bank or recipe.data.train),
    ):
        if not folder:
            raise UsageError(f"the run's recipe names no such images: give {name} SHARD_FOLDER")
    for name in names[2:]:
        if given.get(name, 1) < (name == "batch_size"):
            raise UsageError(f"--{name.replace('_', '-')} {given[name]} is too small")
    checks.check_kept(recipe)
    return recipe
