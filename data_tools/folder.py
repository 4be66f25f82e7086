"""Any tree of images -> shards; the first level of folders gives the labels."""

import argparse
import os
from pathlib import Path

from data_tools.packing import add_recode
from data_tools.shard import Split, add_options, write_splits
from data_tools.sources import Rejected, Sample
from poa_ds.data.store.leftovers import NAMES
from poa_ds.system import paths
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError, UserError

# folders that hold parts of a data set, and no class
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds shard folder`."""
    parser.add_argument("--root", type=paths.path, required=True, help="folder of images")
    add_options(parser)
    add_recode(parser)


def run(args: argparse.Namespace) -> int:
    """Writes OUT. With sub-folders each is a class; without any, images have no label."""
    check_root(args.root, args.out)
    ranks = {path.name: rank for rank, path in enumerate(folders(args.root))}
    if ranks and {name.lower() for name in ranks} <= SPLITS:
        say(
            f"warning: {args.root} holds {' and '.join(ranks)}: these become the classes; "
            f"for shards of one alone: --root {args.root / next(iter(ranks))}"
        )
    samples, rejected = [], []
    found, passed = files(args.root, named_from=args.root)
    rejected += passed
    for path in found:
        inside = path.relative_to(args.root)
        reason = passed_over(inside)
        if reason:
            rejected.append(Rejected(str(inside), reason))
            continue
        label = ranks[inside.parts[0]] if len(inside.parts) > 1 else -1
        name, note = str(inside.with_suffix("")), {"source": str(inside)}
        samples.append(Sample(name, str(inside), path, label, note))
    rejected += without_images(ranks, samples, passed, place="")
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


def passed_over(inside: Path) -> str:
    """Why a path inside the root is none of the data, or nothing."""
    if not NAMES.isdisjoint(inside.parts):
        return "left by a file manager"
    return "hidden file" if any(part.startswith(".") for part in inside.parts) else ""


def folders(root: Path) -> list[Path]:
    """The sub-folders that are not passed over, sorted by name."""
    try:
        found = list(root.iterdir())
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from error
    return sorted(path for path in found if path.is_dir() and not passed_over(Path(path.name)))


def files(root: Path, *, named_from: Path) -> tuple[list[Path], list[Rejected]]:
    """(all files below root, the folders that were passed over); links are followed.

    Each folder is walked once. Rejections have the path from `named_from`.
    """
    found: list[Path] = []
    rejected: list[Rejected] = []
    seen: set[Path] = set()

    def reject(folder: str, reason: str) -> None:
        rejected.append(Rejected(f"{Path(folder).relative_to(named_from)}/", reason))

    def unreadable(error: OSError) -> None:
        reject(error.filename, f"unreadable folder: {error.strerror}")

    for folder, below, names in os.walk(root, onerror=unreadable, followlinks=True):
        real = Path(folder).resolve()
        if real in seen:
            below.clear()
            reject(folder, "a link to a folder that is read elsewhere")
            continue
        seen.add(real)
        below.sort()
        found += [Path(folder) / name for name in sorted(names)]
    return found, rejected
