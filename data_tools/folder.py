"""Any tree of images -> shards; the first level of folders gives the labels."""

import argparse
from pathlib import Path

from data_tools.packing import add_recode
from data_tools.shard import Split, add_options, write_splits
from data_tools.sources import Rejected, Sample
from poa_ds.data.store import tree
from poa_ds.system import paths
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds shard folder`."""
    parser.add_argument("--root", type=paths.path, required=True, help="folder of images")
    add_options(parser)
    add_recode(parser)


def run(args: argparse.Namespace) -> int:
    """Writes OUT. With sub-folders each is a class; without any, images have no label."""
    check_root(args.root, args.out)
    found = tree.below(args.root)
    ranks = {name: rank for rank, name in enumerate(found.classes)}
    if tree.only_splits(found.classes):
        say(
            f"warning: {args.root} holds {' and '.join(ranks)}: these become the classes; "
            f"for shards of one alone: --root {args.root / next(iter(ranks))}"
        )
    samples = [
        Sample(str(Path(name).with_suffix("")), name, args.root / name, label, {"source": name})
        for name, label in zip(found.names, found.labels, strict=True)
    ]
    rejected = [Rejected(*passed) for passed in found.passed]
    rejected += without_images(ranks, samples, rejected, place="")
    split = Split(samples, list(ranks), rejected, str(args.root))
    return write_splits({args.out: split}, tool="folder", args=args)


def without_images(
    ranks: dict[str, int], samples: list[Sample], passed: list[Rejected], *, place: str
) -> list[Rejected]:
    """The class folders below `place` that gave no sample, but for those that were passed over."""
    filled, named = {sample.label for sample in samples}, {item.file for item in passed}
    empty = [f"{place}{name}/" for name, rank in ranks.items() if rank not in filled]
    return [Rejected(name, "class folder without images") for name in empty if name not in named]


def check_root(root: Path, out: Path) -> None:
    """UsageError unless root is a folder that will not contain its own shards."""
    if not root.is_dir():
        raise UsageError(f"--root {root}: no such folder")
    if out.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"--out {out} lies inside --root {root}")
