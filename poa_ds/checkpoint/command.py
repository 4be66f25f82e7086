"""poa-ds checkpoint: what a run's checkpoints are, and the same one in other files.

Needs neither DeepSpeed nor a GPU; `inspect` not even torch.
"""

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from poa_ds.checkpoint import folders
from poa_ds.recipe import continuing, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system import events, paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.events import Event
from poa_ds.system.printable import printable
from poa_ds.system.run_folder import RunFolder
from poa_ds.system.typed_yaml import parse

COLUMNS = ("checkpoint", "step", "samples seen", "written (UTC)", "ranks", "ZeRO", "MB", "state")


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `poa-ds checkpoint inspect`."""
    parser.add_argument(
        "place", type=paths.path, metavar="RUN|FOLDER", help="a run, or one checkpoint"
    )
    parser.add_argument(
        "--diff",
        type=paths.path,
        metavar="RUN|FOLDER",
        help="also list what differs from the recipe of that one",
    )
    parser.add_argument(
        "--quick", action="store_true", help="compare sizes only, do not read the files"
    )


def inspect(args: argparse.Namespace) -> int:
    """Print a table, and what happened to the run; 1 if any checkpoint is not whole."""
    there = _folders(args.place)
    wrong = {folder: folders.problem(folder, checksums=not args.quick) for folder in there}
    rows = [COLUMNS, *(_row(folder, problem) for folder, problem in wrong.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) - 1)]
    for row in rows:
        cells = [f"{text:>{width}}" for text, width in zip(row, widths, strict=False)]
        tell(printable("  ".join([*cells, row[-1]])))
    root = there[0].parent
    pointer = folders.pointer_problem(root)
    if pointer:
        tell(pointer)
    whole = [folder for folder, problem in wrong.items() if problem is None]
    if whole:
        made = folders.read_manifest(whole[-1])["made"]
        versions = ", ".join(f"{name} {version}" for name, version in made.items() if version)
        tell(printable(f"{whole[-1].name} was made by {versions}"))
    for event in events.read(RunFolder(root.parent).events):
        tell(printable(_happened(event)))
    if args.diff:
        tell("\n".join(map(printable, _differences(_one(args.place), _one(args.diff)))))
    return int(len(whole) < len(there) or bool(pointer))


def _happened(event: Event) -> str:
    when = datetime.fromtimestamp(event.time, UTC)
    return f"{when:%Y-%m-%d %H:%M}  step {event.step:,}: {event.kind} {event.text}".rstrip()


def _folders(place: Path) -> list[Path]:
    """All checkpoints of a run, or the one that is named."""
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; expected a run or one of its checkpoints")
    if (place / folders.MANIFEST).exists() or place in folders.listed(place.parent):
        return [place]
    root = RunFolder(place).checkpoints
    found = folders.listed(root) or folders.listed(place)
    if not found:
        raise UserError(f"{place} holds no checkpoint: neither {root.name}/step* nor step*")
    return found


def _one(place: Path) -> Path:
    """The named checkpoint, or the newest whole one of a run; newer ones that are not are said."""
    for folder in reversed(_folders(place)):
        problem = folders.problem(folder, checksums=False)
        if problem is None:
            return folder
        say(f"not used: {folder}: {problem}")
    raise UserError(f"{place}: no checkpoint is whole; `poa-ds checkpoint inspect` says why")


def _row(folder: Path, problem: str | None) -> tuple[str, ...]:
    try:
        manifest = folders.read_manifest(folder)
    except UserError:
        return (folder.name, *("?" for _ in COLUMNS[2:]), f"damaged: {problem}")
    written = datetime.fromtimestamp((folder / folders.MANIFEST).stat().st_mtime, UTC)
    return (
        folder.name,
        f"{manifest['state']['step']:,}",
        f"{manifest['state']['samples_seen']:,}",
        f"{written:%Y-%m-%d %H:%M}",
        str(manifest["ranks"]),
        str(manifest["stage"]),
        f"{folders.total_bytes(manifest) / 1e6:,.1f}",
        f"damaged: {problem}" if problem else "whole",
    )


def _differences(folder: Path, other: Path) -> Iterator[str]:
    """The recipe of `other`, then that of `folder`, key by key."""
    old, new = (folders.read_manifest(f)["recipe"] for f in (other, folder))
    changed = continuing.changes(old, _recipe(new, folder))
    yield f"recipe of {other} -> {folder}: " + ("" if changed else "no difference")
    yield from (f"  {change}" for change in changed)


def _recipe(text: str, folder: Path) -> Recipe:
    tree = parse(text, source=f"the recipe in {folder / folders.MANIFEST}")
    if not isinstance(tree, dict):
        raise UserError(f"{folder / folders.MANIFEST} holds no recipe")
    return load.kept(tree)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `poa-ds checkpoint convert`."""
    parser.add_argument(
        "place", type=paths.path, metavar="RUN|FOLDER", help="a run, or one checkpoint"
    )
    parser.add_argument("out", type=paths.path, metavar="OUT", help="folder to write, new or empty")
    parser.add_argument("--ranks", type=int, metavar="N", help="number of shard files (default: 1)")
    parser.add_argument(
        "--teacher",
        action="store_true",
        help="write the teacher alone, in fp32, as `poa-ds sizes|eval|extract` read it",
    )


def convert(args: argparse.Namespace) -> int:
    """Write a checkpoint, or its teacher, into OUT. Exit status 0."""
    if args.ranks is not None and (args.ranks < 1 or args.teacher):
        raise UsageError(f"--ranks {args.ranks}: 1 or more, and not together with --teacher")
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise UsageError(f"{args.out} exists and is not an empty folder: name a new one")
    folder = _one(args.place)
    wrong = folders.problem(folder)
    if wrong:
        raise UserError(f"{folder}: {wrong}")
    from poa_ds.checkpoint.reshard import reshard, teacher  # torch

    if args.teacher:
        from poa_ds.checkpoint.deployed import write_teacher

        manifest = folders.read_manifest(folder)
        recipe = _recipe(manifest["recipe"], folder)
        tensors = teacher(folder, manifest)
        write_teacher(args.out, tensors, recipe, manifest["state"]["step"], source=str(folder))
        tell(f"{len(tensors)} tensors of the teacher in {args.out}")
        return 0
    reshard(folder, args.out, args.ranks or 1)
    tell(f"{folder} in {args.ranks or 1} shard files: {args.out}")
    return 0
