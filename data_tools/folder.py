"""Any tree of images -> shards; the first level of folders gives the labels."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from data_tools.shard import Split, add_options, add_recode, write_splits
from data_tools.sources import Rejected, Sample
from poa_ds.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds shard folder`."""
    parser.add_argument("--root", type=Path, required=True, help="folder of images")
    add_options(parser)
    add_recode(parser)


def run(args: argparse.Namespace) -> int:
    """Writes OUT. With sub-folders each is a class; without any, images have no label."""
    check_root(args.root, args.out)
    ranks = {path.name: rank for rank, path in enumerate(folders(args.root))}
    samples, rejected = [], []
    for path in files(args.root):
        inside = path.relative_to(args.root)
        if hidden(inside):
            rejected.append(Rejected(str(inside), "hidden file"))
            continue
        label = ranks[inside.parts[0]] if len(inside.parts) > 1 else -1
        name, note = str(inside.with_suffix("")), {"source": str(inside)}
        samples.append(Sample(name, str(inside), path, label, note))
    filled = {sample.label for sample in samples}
    empty = [name for name, rank in ranks.items() if rank not in filled]
    rejected += [Rejected(f"{name}/", "class folder without images") for name in empty]
    split = Split(samples, list(ranks), rejected, str(args.root))
    return write_splits({args.out: split}, tool="folder", args=args)


def check_root(root: Path, out: Path) -> None:
    """UsageError unless root is a folder that will not contain its own shards."""
    if not root.is_dir():
        raise UsageError(f"--root {root}: no such folder")
    if out.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"--out {out} lies inside --root {root}")


def hidden(inside: Path) -> bool:
    """Whether any part of a path inside the root is hidden."""
    return any(part.startswith(".") for part in inside.parts)


def folders(root: Path) -> list[Path]:
    """The sub-folders that are not hidden, sorted by name."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not hidden(Path(path.name)))


def files(root: Path) -> Iterator[Path]:
    """All files below root, sorted; links are followed, each folder once."""
    seen: set[Path] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = Path(folder).resolve()
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        yield from (Path(folder) / name for name in sorted(names))
