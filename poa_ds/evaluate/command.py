"""poa-ds eval knn: measures the sizes of a run, on one process or on all ranks of a launcher."""

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.data.places import open_folder
from poa_ds.evaluate import (
    accuracies,
    classes,
    corruptions,
    measured,
    real,
    results,
    score_table,
    split,
)
from poa_ds.evaluate.accuracies import Accuracy, share
from poa_ds.evaluate.features import Readout, random_weights
from poa_ds.evaluate.knn import answers_of_sets, raw_pixel_answers, right_row
from poa_ds.evaluate.knn_few import BySet, Parts, percent
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
    split.add_arguments(parser, draws=True)
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
    parser.add_argument(
        "--sizes",
        type=arguments.named,
        help="all, or names and WIDTHxDEPTH, by commas (recipe's)",
    )
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument("--queries", type=paths.place, help="images (recipe's evaluation.queries)")
    parser.add_argument(
        "--bank", type=paths.place, help="images (recipe's evaluation.bank, or data.train)"
    )
    parser.add_argument(
        "--query-images", type=arguments.whole, help="evenly spread; 0 = all (recipe's)"
    )
    parser.add_argument(
        "--bank-images", type=arguments.whole, help="evenly spread; 0 = all (recipe's)"
    )
    parser.add_argument(
        "--resize", type=arguments.count, help="pixels of the short side (recipe's evaluation's)"
    )
    parser.add_argument(
        "--crop", type=arguments.count, help="pixels of the middle that is seen (recipe's)"
    )
    parser.add_argument("--batch-size", type=arguments.count, help="images at a time (recipe's)")
    parser.add_argument(
        "--workers", type=arguments.whole, help="loader processes per rank (recipe's)"
    )
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
        parts, readout = Parts.of(own.protocol, args), own.readout
        lists = _lists_of(parts.protocol, args)
        asked = {"val": Asked(parts.protocol.queries, ranked=True)} | _of_tests(own, args)
        found = _answers(own.model.to(device), own, parts, asked)
        seconds = (time.monotonic() - began) / len(own.subnets)
        floors = _floors(own, parts, device) if args.floors else [{}] * len(found)
        rows = []
        for number, few in enumerate(parts.options if dist.is_main() else ()):
            protocol, of_sets = parts.protocol_of(number), found[number]
            _keep_knn(own, protocol, of_sets, floors[number], few)
            about = (readout.precision, seconds, lists)
            rows += knn_rows(own.step, protocol, asked, of_sets, few, *about)
        if dist.is_main():
            score_table.keep(corruptions.gathered(rows, args), own.folder.evaluations, args)
    return 0


def _answers(
    model: ElasticBackbone, own: Opened, parts: Parts, asked: Mapping[str, Asked]
) -> list[dict[Subnet, BySet]]:
    """For each number of labels, of every size. A collective."""
    sets, bar = parts.asked(asked), progress if dist.is_main() else None
    every = answers_of_sets(model, own.subnets, parts.protocol, sets, own.readout, progress=bar)
    by_size = {subnet: parts.sorted(asked, found) for subnet, found in every.items()}
    numbers = range(len(parts.options))
    return [{subnet: found[n] for subnet, found in by_size.items()} for n in numbers]


def _floors(own: Opened, parts: Parts, device: torch.device) -> list[dict[str, Any]]:
    """For each number of labels, what KnnRow has of raw pixels and random weights. A collective."""
    asked, bar = {"val": Asked(parts.protocol.queries)}, progress if dist.is_main() else None
    sets = parts.asked(asked)
    pixels = raw_pixel_answers(parts.protocol, sets, own.readout, progress=bar)
    untrained = _answers(random_weights(own.recipe).to(device), own, parts, asked)
    return [
        {
            "raw_pixels": percent(of_pixels["val"]),
            "random_weights": {s: percent(of["val"]) for s, of in by_size.items()},
        }
        for of_pixels, by_size in zip(parts.sorted(asked, pixels), untrained, strict=True)
    ]


def _keep_knn(
    own: Opened,
    protocol: KnnProtocol,
    found: Mapping[Subnet, BySet],
    floors: Mapping[str, Any],
    args: argparse.Namespace,
) -> None:
    """Print the queries' top-1 for every k; of all labels also add it to the run's files."""
    how, k = protocol.record(own.readout.precision), protocol.options.report_k
    top1 = {subnet: percent(of["val"]) for subnet, of in found.items()}
    row = KnnRow.of(own.step, how, top1, **floors)
    show = say if args.csv or args.json else tell
    show(results.table(row))
    if not split.amount(args):
        answered = {subnet: of["val"][0] for subnet, of in found.items()}
        results.append(own.folder.right, right_row(own.step, how, k, answered))
        results.append(own.folder.knn, row)
        show(f"added to {own.folder.knn}")


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


def knn_rows(
    step: int,
    protocol: KnnProtocol,
    asked: Mapping[str, Asked],
    answered: Mapping[Subnet, BySet],
    args: argparse.Namespace,
    precision: str,
    seconds: float,
    lists: Real | None = None,
) -> list[ScoreRow]:
    """What knn.jsonl has no place for, for the k that is reported: knn_top5 and others.

    knn_top1 too where it is of few labels or another set; of several draws their mean. args: of
    one number of labels.
    """
    how, k, amount = protocol.record(precision), protocol.options.report_k, split.amount(args)
    used = {"train": how.pop("bank"), "val": how.pop("queries"), **how, "k": k}
    used |= {"subset": split.subset_record(args), "shots": args.shots, "seed": args.seed}
    used |= {"draws": split.draws_of(args)} if amount else {}
    used["published"] = not amount and (how["resize"], how["crop"]) == (256, 224)
    rows, every = [], len(protocol.bank.folder.classes)
    about = {"step": step, "chosen_by": "", "amount": amount, "seconds": seconds}

    def add(subnet: Subnet, name: str, draws: Sequence[accuracies.Found], val: Any) -> None:
        spread = accuracies.spread(draws) if len(draws) > 1 else {}
        for metric, accuracy in accuracies.mean(draws).items():
            own = about | {"setting": {"spread": spread[metric]} if spread else {}}
            found, of = {metric: accuracy}, used | {"val": val}
            rows.extend(score_rows_of("knn", name, found, of, size=str(subnet), **own))

    for subnet, of_sets in answered.items():
        # a mean over kinds and levels is of all of them
        kinds = [x for name, x in of_sets.items() if name.startswith(corruptions.BEGIN)]
        whole = all(one.finite for draws in kinds for one in draws)
        for name, of in asked.items():
            draws = of_sets[name]
            finite = all(one.finite for one in draws)
            if not finite or (name.startswith(corruptions.BEGIN) and not whole):
                continue
            found = [_metrics(one, of, k, every) for one in draws]
            if name == "val" and not amount:
                del found[0]["top1"]
            add(subnet, name, found, of.split.record() | measured.answers_record(of.among))
    of_queries = {s: of["val"] for s, of in answered.items() if all(x.finite for x in of["val"])}
    if lists and of_queries:
        flat = [one for draws in of_queries.values() for one in draws]
        by_any, val = real.of_answers(lists, protocol.queries, flat, k)
        rest = iter(by_any)
        for subnet, draws in of_queries.items():
            add(subnet, real.NAME, [next(rest) for _ in draws], val)
    return rows


def _metrics(found: Answers, asked: Asked, k: int, classes: int) -> dict[str, Accuracy]:
    if not asked.ranked:
        return {"top1": share(found.right[k])}
    known = found.labels < classes  # else another image, of none of them, stands for a damaged one
    found = dataclasses.replace(found, first={k: found.first[k][known]}, labels=found.labels[known])
    count = classes if asked.among is None else int(asked.among.sum())
    return dict(accuracies.accuracies(found.first[k], found.labels, count))


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
    checks.check_kept(recipe)
    return recipe
