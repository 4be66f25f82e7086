"""Writing shard folders: deterministic tars, their index, and a list of what could not be used.

The same samples, seed and limits give the same bytes, whatever the number of workers. Every file is
written under another name and renamed when it is complete; dataset.json comes last, so a folder
without it is unfinished, and the same command continues it.
"""

import argparse
import hashlib
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_tools.finished import Journal
from data_tools.packing import FIRST, Outcome, Recode, pack, unique_keys
from data_tools.parallel import ordered, processors
from data_tools.sources import Altered, Rejected, Sample, fingerprint
from data_tools.tars import Limits, Writer
from poa_ds.data.image.opening import LARGEST
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.leftovers import leftover
from poa_ds.data.store.manifest import JOURNAL, MANIFEST
from poa_ds.data.store.scan import AS_THEY_ARE
from poa_ds.data.store.tree import SHUFFLE, shuffled
from poa_ds.system import paths
from poa_ds.system.arguments import count, whole
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.printable import printable_lines
from poa_ds.system.progress import progress

REJECTED, ALTERED = "rejected.jsonl", "altered.jsonl"
OWN = re.compile(
    r"shard-\d{6}\.tar(\.partial)?"
    r"|(index\.npy|(rejected|altered)\.jsonl|dataset\.json)(\.([0-9a-f]{16}\.)?partial)?"
    + f"|{re.escape(JOURNAL)}"
)
PORTION = 16  # images that a worker takes at once
Item = TypeVar("Item", Rejected, Altered)
FEW = 200  # images; for so few no worker is started
UNWRITTEN = ("out", "workers")  # arguments that do not change what is written


@dataclass(frozen=True)
class Split:
    """What becomes one folder; `source` says in dataset.json where it came from."""

    samples: Sequence[Sample]
    classes: Sequence[str]
    rejected: Sequence[Rejected]
    source: str


@dataclass(frozen=True)
class Summary:
    """What was written into one folder; as text the last line that a tool prints."""

    folder: Path
    samples: int
    shards: int
    bytes: int
    rejected: tuple[Rejected, ...]
    altered: tuple[Altered, ...] = ()

    def __str__(self) -> str:
        text = f"{self.folder}: {self.samples} images, {self.shards} shards, {self.bytes} bytes"
        if self.rejected:
            kinds = _kinds(item.reason for item in self.rejected)
            named = f"({', '.join(kinds)}), see {self.folder / REJECTED}"
            text = f"{text}; {len(self.rejected)} rejected {named}"
        else:
            text = f"{text}; nothing rejected"
        changes = _kinds(item.change for item in self.altered)
        if changes:
            text = "\n  ".join([f"{text}; not all is kept, see {self.folder / ALTERED}", *changes])
        return printable_lines(text)


def _kinds(reasons: Iterable[str]) -> list[str]:
    """One text per kind, with its count; what stands behind a colon differs within a kind."""
    counts = Counter(reason.split(":")[0] for reason in reasons)
    return [f"{count} x {kind}" for kind, count in sorted(counts.items())]


def add_options(parser: argparse.ArgumentParser, *, within: str = "") -> None:
    """The options that every kind of source shares; within: which folders of OUT are written."""
    parser.add_argument(
        "--out",
        type=paths.path,
        required=True,
        metavar="DIR",
        help=f"folder to write: new or empty{within}; the same command continues what was begun",
    )
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="of the shuffle (%(default)s)"
    )
    for name, value in (("images", Limits.images), ("bytes", Limits.bytes)):
        parser.add_argument(
            f"--{name}-per-shard", type=count, default=value, metavar="N", help="(%(default)s)"
        )
    parser.set_defaults(
        recode=0, quality=Recode.quality, pages=FIRST, max_pixels=LARGEST, as_is=False
    )
    add_workers(parser)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """--workers, which every tool that reads much has."""
    parser.add_argument(
        "--workers",
        type=whole,
        default=processors(),
        metavar="N",
        help="processes that work, 0 or 1: this one alone (%(default)s: all processors)",
    )


def write_splits(splits: dict[Path, Split], *, tool: str, args: argparse.Namespace) -> int:
    """Writes every folder and prints its summary; mistakes are found before the first is begun."""
    plans = {folder: _plan(split, args) for folder, split in splits.items()}
    for folder, plan in plans.items():
        prepare(folder, plan)
    for folder, split in splits.items():
        tell(str(_write_or_continue(folder, split, plans[folder], tool=tool, args=args)))
    return 0


def prepare(folder: Path, plan: str) -> None:
    """UserError unless the folder is new, empty, or was begun by a command like this one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    foreign = [name for name in found if not OWN.fullmatch(name) and not leftover(name)]
    if foreign:
        raise UsageError(f"{folder} is not empty ({foreign[0]}): choose another --out")
    if MANIFEST in found and ShardFolder.load(folder).manifest.made.get("plan") != plan:
        raise UsageError(
            f"{folder} holds finished shards of other images or options: "
            "remove it or choose another --out"
        )


def write(
    folder: Path,
    samples: Sequence[Sample],
    *,
    classes: Sequence[str],
    rejected: Sequence[Rejected],
    tool: str,
    args: argparse.Namespace,
    source: str,
) -> Summary:
    """The summary of one shard folder; args.seed shuffles, undecodable images are rejected.

    A folder that was begun is continued, one that is finished is left as it is.
    """
    split = Split(samples, classes, rejected, source)
    plan = _plan(split, args)
    prepare(folder, plan)
    return _write_or_continue(folder, split, plan, tool=tool, args=args)


def _write_or_continue(
    folder: Path, split: Split, plan: str, *, tool: str, args: argparse.Namespace
) -> Summary:
    try:
        if (folder / MANIFEST).exists():
            return _finished(folder)
        with Journal.open(folder, plan, workers=args.workers) as journal:
            return _write(folder, split, journal, _made(tool, args, split.source, plan), args)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def _write(
    folder: Path, split: Split, journal: Journal, made: dict[str, Any], args: argparse.Namespace
) -> Summary:
    limits = Limits(args.images_per_shard, args.bytes_per_shard)
    lost, altered = [*split.rejected, *journal.rejected], list(journal.altered)
    noted, kept = len(lost), len(altered)
    with Writer(folder, limits, journal.shards, journal.rows) as writer:
        packed = _packed(split.samples, args, folder.name, journal.next)
        for place, outcome in enumerate(packed, start=journal.next):
            closed = writer.add(*outcome.packed) if outcome.packed else None
            if closed:
                journal.note(closed, following=place, rejected=lost[noted:], altered=altered[kept:])
                noted, kept = len(lost), len(altered)
            lost += outcome.rejected
            altered += outcome.altered
        if not writer.samples:
            reasons = "".join(f"\n  {item.file}: {item.reason}" for item in lost[:5])
            raise UserError(f"{split.source}: no usable image for {folder}{reasons}")
        lost.sort(key=lambda item: (item.file, item.reason))
        altered.sort(key=lambda item: (item.file, item.change))
        for name, items in ((REJECTED, lost), (ALTERED, altered)):
            lines = [json.dumps(asdict(item)) + "\n" for item in items]
            writer.file(name, "".join(lines).encode())
        manifest = writer.finish(tuple(split.classes), made, rejected=len(lost))
    journal.remove()
    counts = manifest.counts
    return Summary(
        folder,
        counts["samples"],
        len(manifest.shards),
        counts["bytes"],
        tuple(lost),
        tuple(altered),
    )


def _finished(folder: Path) -> Summary:
    """The summary of a folder that an earlier run has finished; damage since then is an error."""
    found = ShardFolder.open(folder)
    (folder / JOURNAL).unlink(missing_ok=True)  # a run was killed in its last moment
    lost, altered = _listed(folder / REJECTED, Rejected), _listed(folder / ALTERED, Altered)
    shards = found.manifest.shards
    size = sum(shard.bytes for shard in shards)
    return Summary(folder, len(found), len(shards), size, lost, altered)


def _listed(path: Path, kind: type[Item]) -> tuple[Item, ...]:
    """The lines of one of the lists; a folder of an earlier version has only the first."""
    try:
        lines = path.read_text("utf-8").splitlines()
        return tuple(kind(**json.loads(line)) for line in lines)
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _packed(
    samples: Sequence[Sample], args: argparse.Namespace, label: str, first: int
) -> Iterator[Outcome]:
    """What becomes of each sample in shuffled order, from place `first` on."""
    keys = unique_keys([sample.name for sample in samples])
    order = shuffled(len(keys), args.seed)
    recode = Recode.of(args)
    portions = (
        [(keys[n], samples[n], recode) for n in order[begin : begin + PORTION]]
        for begin in range(first, len(order), PORTION)
    )
    workers = args.workers if len(order) - first >= FEW else 1
    results = (item for portion in ordered(pack, portions, workers) for item in portion)
    yield from progress(results, total=len(order), label=label, unit="images", first=first)


def _plan(split: Split, args: argparse.Namespace) -> str:
    """A digest of all that determines the folder; UsageError where the options are unusable."""
    if not 0 <= args.seed < SHUFFLE:
        raise UsageError(f"--seed {args.seed}: not in 0 .. {SHUFFLE - 1}")
    limits, recode = Limits(args.images_per_shard, args.bytes_per_shard), Recode.of(args)
    limits.check()
    digest = hashlib.sha256()
    options = [args.seed, *astuple(limits), recode.short_side, args.quality, *split.classes]
    options += recode.changed
    options += [f"{item.file}: {item.reason}" for item in split.rejected]
    digest.update(json.dumps(options).encode())
    sizes = progress(split.samples, total=len(split.samples), label="sizes", unit="files")
    for sample in sizes:  # on a network disk a million of them take minutes
        digest.update(fingerprint(sample).encode("utf-8", "surrogateescape"))
        if sample.note is not None:
            digest.update(json.dumps(sample.note, sort_keys=True).encode())
    return digest.hexdigest()


def _made(tool: str, args: argparse.Namespace, source: str, plan: str) -> dict[str, Any]:
    """How the folder was made; nothing in it changes from run to run."""
    arguments = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in sorted(vars(args).items())
        if name not in UNWRITTEN and not callable(value)
    }
    return {
        "tool": f"poa-ds shard {tool}",
        "version": version(),
        "plan": plan,
        "seed": args.seed,
        "source": source,
        "arguments": arguments,
        **(AS_THEY_ARE.to_json() if args.as_is else {}),
    }


def version() -> str:
    """Of this program, as dataset.json records it."""
    try:
        return importlib.metadata.version("poa_ds")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
