"""poa-ds eval knn: measures the sizes of a run, on one process or on all ranks of a launcher."""

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.data.places import open_folder
from poa_ds.evaluate import classes, corruptions, measured, real, results, score_table, split
from poa_ds.evaluate.accuracies import accuracies, share
from poa_ds.evaluate.features import Readout, random_weights
from poa_ds.evaluate.knn import answers_of_sets, knn, raw_pixel_floor, right_row
from poa_ds.evaluate.knn_protocol import Asked, KnnProtocol
from poa_ds.evaluate.measured import score_rows_of
from poa_ds.evaluate.neighbours import Answers
from poa_ds.evaluate.ranks import all_ranks
from poa_ds.evaluate.real import Real
from poa_ds.evaluate.results import KnnRow
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe import checks
from poa_ds.recipe.tree import Recipe
from poa_ds.system import arguments, dist, paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError
from poa_ds.system.progress import progress
from poa_ds.system.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval knn`."""
    add_bank_arguments(parser)
    parser.add_argument("--floors", action="store_true", help="also raw pixels and random weights")
    split.add_arguments(parser)
    measured.add_arguments(parser)
    parser.add_argument("--seed", type=arguments.whole, default=0, help="of few (%(default)s)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", action="store_true", help="print CSV of what is beside knn.jsonl")
    output.add_argument("--json", action="store_true", help="the same as JSON")


def add_bank_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that asks queries in a bank."""
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
    parser.add_argument(
        "--resize", type=arguments.count, help="pixels of the short side (recipe's evaluation's)"
    )
    parser.add_argument(
        "--crop", type=arguments.count, help="pixels of the middle that is seen (recipe's)"
    )
    parser.add_argument("--batch-size", type=int, help="images at a time (recipe's)")
    parser.add_argument("--workers", type=int, help="loader processes per rank (recipe's)")
    classes.add_arguments(parser)


@dataclass(frozen=True)
class Opened:
    """A network, and the images that it is asked about; folder: of its run."""

    model: ElasticBackbone
    recipe: Recipe
    step: int
    subnets: Sequence[Subnet]
    readout: Readout
    folder: RunFolder
    protocol: KnnProtocol


def opened(args: argparse.Namespace, device: torch.device) -> Opened:
    """As the options of `add_bank_arguments` say; what makes answers doubtful is said."""
    model, recipe, step = load_teacher(args.run, args.step)
    recipe = overridden(recipe, args)
    options, readout = recipe.evaluation, Readout.of(recipe, device)
    subnets = model.space.select(args.sizes or options.sizes)
    folder = RunFolder.around(find_teacher(args.run, args.step))
    bank = open_folder(options.bank or recipe.data.train, recipe.data, folder.images)
    queries = open_folder(options.queries, recipe.data, folder.images)
    protocol = KnnProtocol.of(bank, queries, options)
    protocol.say_doubts()
    return Opened(model, recipe, step, subnets, readout, folder, protocol)


def run(args: argparse.Namespace) -> int:
    """Measure, print tables, add rows to the run's files. Runs under torchrun as well.

    Of few labels to evaluations.jsonl alone: what knn.jsonl has is of all.
    """
    with all_ranks() as device:
        own, began = opened(args, device), time.monotonic()
        protocol, readout = _of_few(own.protocol, args), own.readout
        lists = _lists_of(protocol, args)
        bar = progress if dist.is_main() else None
        asked, model = {"val": Asked(protocol.queries, ranked=True)}, own.model.to(device)
        asked |= _of_tests(own, args)
        of_sets = answers_of_sets(
            model, own.subnets, protocol, [*asked.values()], readout, progress=bar
        )
        seconds = (time.monotonic() - began) / len(own.subnets)
        pixels, untrained = None, None
        if args.floors:
            pixels = raw_pixel_floor(protocol, readout, progress=bar)
            other = random_weights(own.recipe).to(device)
            untrained = knn(other, own.subnets, protocol, readout, progress=bar)
        if dist.is_main():
            answered = {subnet: of_queries for subnet, [of_queries, *_] in of_sets.items()}
            found = {subnet: of_size.percent() for subnet, of_size in answered.items()}
            how, k = protocol.record(readout.precision), protocol.options.report_k
            row = KnnRow.of(own.step, how, found, raw_pixels=pixels, random_weights=untrained)
            show = say if args.csv or args.json else tell
            show(results.table(row))
            if not split.amount(args):
                results.append(own.folder.right, right_row(own.step, how, k, answered))
                results.append(own.folder.knn, row)
                show(f"added to {own.folder.knn}")
            about = (readout.precision, seconds, lists)
            rows = knn_rows(own.step, protocol, asked, of_sets, args, *about)
            score_table.keep(corruptions.gathered(rows, args), own.folder.evaluations, args)
    return 0


def _of_tests(own: Opened, args: argparse.Namespace) -> dict[str, Asked]:
    """The sets besides the queries."""
    crop = own.recipe.evaluation.crop
    flops = sum(own.model.flops(subnet, crop) for subnet in own.subnets)
    folders = {
        place: open_folder(place, own.recipe.data, own.folder.images)
        for place in measured.tests(args).values()
    }
    corruptions.say_cost(args, lambda place: len(folders[place]), flops)
    bank, options, found = own.protocol.bank.folder, own.recipe.evaluation, {}
    for name, place in measured.tests(args).items():
        protocol = KnnProtocol.of(bank, folders[place], options)
        protocol.say_doubts()
        queries = protocol.queries
        among = measured.answers(queries.numbers[:-1], len(bank.classes), args)
        if among is not None:  # the last number is that of images without a class
            among = F.pad(among, (0, 1))
        ranked = not name.startswith(corruptions.BEGIN)  # of many sets top-1 is enough
        found[name] = Asked(queries, f"k-NN {name}", among, ranked=ranked)
    return found


def _lists_of(protocol: KnnProtocol, args: argparse.Namespace) -> Real | None:
    """What --real names. UserError: it does not go with the queries."""
    if args.real is None:
        return None
    found, folder = Real.read(args.real), protocol.queries.folder
    found.check(len(folder), str(folder.path))
    return found


def _of_few(protocol: KnnProtocol, args: argparse.Namespace) -> KnnProtocol:
    """The same with a bank of few labels, where these are asked for."""
    bank = protocol.bank
    kept = split.few(
        bank.labels, args, seed=args.seed, keys=lambda: [*map(bank.folder.key, bank.rows)]
    )
    bank = dataclasses.replace(bank, rows=bank.rows[kept.numpy()])
    return dataclasses.replace(protocol, bank=bank)


def knn_rows(
    step: int,
    protocol: KnnProtocol,
    asked: Mapping[str, Asked],
    answered: Mapping[Subnet, Sequence[Answers]],
    args: argparse.Namespace,
    precision: str,
    seconds: float,
    lists: Real | None = None,
) -> list[ScoreRow]:
    """What knn.jsonl has no place for, for the k that is reported: knn_top5 and others.

    knn_top1 too where it is of few labels or another set.
    """
    how, k, amount = protocol.record(precision), protocol.options.report_k, split.amount(args)
    used = {"train": how.pop("bank"), "val": how.pop("queries"), **how, "k": k}
    used |= {"subset": split.subset_record(args), "shots": args.shots, "seed": args.seed}
    used["published"] = not amount and (how["resize"], how["crop"]) == (256, 224)
    rows, every = [], len(protocol.bank.folder.classes)
    about = {"step": step, "chosen_by": "", "setting": {}, "amount": amount, "seconds": seconds}
    for subnet, of_sets in answered.items():
        sets = [*zip(asked.items(), of_sets, strict=True)]
        # a mean over kinds and levels is of all of them
        whole = all(x.finite for (name, _), x in sets if name.startswith(corruptions.BEGIN))
        for (name, of), found in sets:
            if not found.finite or (name.startswith(corruptions.BEGIN) and not whole):
                continue
            count = every if of.among is None else int(of.among.sum())
            metrics = {"top1": share(found.right[k])}
            if of.ranked:
                metrics = dict(accuracies(found.first[k], found.labels, count))
            if name == "val" and not amount:
                del metrics["top1"]
            own = used | {"val": of.split.record() | measured.answers_record(of.among)}
            rows += score_rows_of("knn", name, metrics, own, size=str(subnet), **about)
    of_queries = {subnet: found for subnet, [found, *_] in answered.items() if found.finite}
    if lists and of_queries:
        by_any, val = real.of_answers(lists, protocol.queries, [*of_queries.values()], k)
        for subnet, metrics in zip(of_queries, by_any, strict=True):
            own = used | {"val": val}
            rows += score_rows_of("knn", real.NAME, metrics, own, size=str(subnet), **about)
    return rows


def overridden(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with the command's options in the place of its own."""
    names = ("queries", "bank", "query_images", "bank_images", "batch_size", "resize", "crop")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.drop_unknown_classes:
        given["drop_unknown_classes"] = True
    if args.crop and not args.resize:
        given["resize"] = max(recipe.evaluation.resize, args.crop)
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
