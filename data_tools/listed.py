"""A text file of paths -> shards: one path per line, its class behind a tab where it has one."""

import argparse
import os

from data_tools.packing import add_recode
from data_tools.shard import Split, add_options, write_splits
from data_tools.sources import Rejected, Sample
from poa_ds.system import paths
from poa_ds.system.errors import UsageError, UserError


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
    try:
        lines = args.list.read_text("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UsageError(f"--list {args.list}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--list {args.list} cannot be read: {error}") from error
    root = args.root or args.list.parent
    named: dict[str, str] = {}
    rejected = []
    for number, line in enumerate(lines, start=1):
        path, _, name = line.partition("\t")
        if path in named:
            rejected.append(Rejected(path, f"named twice: again in line {number}"))
        elif line.strip():
            named[path] = name.strip()
    classes = sorted({name for name in named.values() if name})
    ranks = {name: rank for rank, name in enumerate(classes)}
    samples = [
        Sample(
            os.path.splitext(path)[0],
            path,
            root / path,
            ranks.get(name, -1),
            {"source": path},
        )
        for path, name in named.items()
    ]
    split = Split(samples, classes, rejected, str(args.list))
    return write_splits({args.out: split}, tool="list", args=args)
