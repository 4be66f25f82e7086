"""A text file of paths -> shards: one path per line, its class behind a tab where it has one."""

import argparse
import os

from data_tools.packing import add_recode
from data_tools.shard import Split, add_options, write_splits
from data_tools.sources import Rejected, Sample
from poa_ds.data.store import tree
from poa_ds.system import paths
from poa_ds.system.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds shard list`."""
    parser.add_argument(
        "--list", type=paths.path, required=True, help="text file: PATH or PATH<tab>CLASS per line"
    )
    parser.add_argument(
        "--root", type=paths.path, help="where relative paths begin (default: folder of the list)"
    )
    add_options(parser)
    add_recode(parser)


def run(args: argparse.Namespace) -> int:
    """Writes OUT. The number of a class is its rank among the sorted names."""
    if args.root is not None and not args.root.is_dir():
        raise UsageError(f"--root {args.root}: no such folder")
    found = tree.listed(args.list, args.root)
    samples = [
        Sample(os.path.splitext(name)[0], name, found.root / name, label, {"source": name})
        for name, label in zip(found.names, found.labels, strict=True)
    ]
    rejected = [Rejected(*passed) for passed in found.passed]
    split = Split(samples, found.classes, rejected, str(args.list))
    return write_splits({args.out: split}, tool="list", args=args)
