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
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.finished import Journal
from data_tools.parallel import ordered, processors
from data_tools.sources import Recode, Rejected, Sample, fingerprint, read, usable
from data_tools.tars import Limits, Packed, Writer
from poa_ds.data.image.opening import Undecodable
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.manifest import JOURNAL, MANIFEST
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.progress import progress

REJECTED = "rejected.jsonl"
SHUFFLE = 1 << 63  # second word of the key of the shuffle; epochs of a run take 0, 1, 2, ...
KEY_LENGTH = 80  # with extension and suffix it stays below the 100 bytes of a USTAR name
OWN = re.compile(
    r"shard-\d{6}\.tar(\.partial)?|(index\.npy|rejected\.jsonl|dataset\.json)(\.partial)?"
    + f"|{re.escape(JOURNAL)}"
)
PORTION = 16  # images that a worker takes at once
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

    def __str__(self) -> str:
        text = f"{self.folder}: {self.samples} images, {self.shards} shards, {self.bytes} bytes"
        if not self.rejected:
            return f"{text}; nothing rejected"
        reasons = Counter(item.reason.split(":")[0] for item in self.rejected)
        named = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
        return f"{text}; {len(self.rejected)} rejected ({named}), see {self.folder / REJECTED}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every kind of source shares."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write: new or empty")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default 0)")
    parser.add_argument(
        "--images-per-shard", type=int, default=Limits.images, help="default %(default)s"
    )
    parser.add_argument(
        "--bytes-per-shard", type=int, default=Limits.bytes, help="default %(default)s"
    )
    parser.set_defaults(recode=0, quality=Recode.quality)
    add_workers(parser)


def add_recode(parser: argparse.ArgumentParser) -> None:
    """The options for sources whose images may be larger than training needs."""
    parser.add_argument(
        "--short-side",
        type=int,
        dest="recode",
        metavar="PIXELS",
        help="re-encode images with a longer short side down to it (default: none)",
    )
    parser.add_argument("--quality", type=int, help="of re-encoded JPEGs (%(default)s)")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """--workers, which every tool that reads much has."""
    parser.add_argument(
        "--workers", type=int, default=processors(), help="processes (default %(default)s)"
    )


def write_splits(splits: dict[Path, Split], *, tool: str, args: argparse.Namespace) -> int:
    """Writes every folder and prints its summary; mistakes are found before the first is begun."""
    plans = {folder: _plan(split, args) for folder, split in splits.items()}
    for folder, plan in plans.items():
        prepare(folder, plan)
    for folder, split in splits.items():
        print(_write_or_continue(folder, split, plans[folder], tool=tool, args=args))
    return 0


def prepare(folder: Path, plan: str) -> None:
    """UserError unless the folder is new, empty, or was begun by a command like this one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    foreign = [name for name in found if not OWN.fullmatch(name)]
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
    lost, noted = [*split.rejected, *journal.rejected], 0
    begun = len(lost)
    with Writer(folder, limits, journal.shards, journal.rows) as writer:
        packed = _packed(split.samples, args, folder.name, journal.next)
        for place, sample in enumerate(packed, start=journal.next):
            if isinstance(sample, Rejected):
                lost.append(sample)
                continue
            closed = writer.add(sample)
            if closed:
                journal.note(closed, following=place, rejected=lost[begun + noted :])
                noted = len(lost) - begun
        if not writer.samples:
            reasons = "".join(f"\n  {item.file}: {item.reason}" for item in lost[:5])
            raise UserError(f"{split.source}: no usable image for {folder}{reasons}")
        lost.sort(key=lambda item: (item.file, item.reason))
        lines = [json.dumps({"file": item.file, "reason": item.reason}) for item in lost]
        writer.file(REJECTED, "".join(line + "\n" for line in lines).encode())
        manifest = writer.finish(tuple(split.classes), made, rejected=len(lost))
    journal.remove()
    counts = manifest.counts
    return Summary(folder, counts["samples"], len(manifest.shards), counts["bytes"], tuple(lost))


def _finished(folder: Path) -> Summary:
    """The summary of a folder that an earlier run has finished; damage since then is an error."""
    found = ShardFolder.open(folder)
    (folder / JOURNAL).unlink(missing_ok=True)  # a run was killed in its last moment
    lines = (folder / REJECTED).read_text("utf-8").splitlines()
    lost = tuple(Rejected(**json.loads(line)) for line in lines)
    shards = found.manifest.shards
    return Summary(folder, len(found), len(shards), sum(shard.bytes for shard in shards), lost)


def _packed(
    samples: Sequence[Sample], args: argparse.Namespace, label: str, first: int
) -> Iterator[Packed | Rejected]:
    """What becomes of each sample in shuffled order, from place `first` on."""
    keys = unique_keys([sample.name for sample in samples])
    words = np.random.Philox(key=[args.seed, SHUFFLE]).random_raw(len(keys))
    order = np.argsort(words, kind="stable")
    recode = Recode(args.recode, args.quality)
    portions = (
        [(keys[n], samples[n], recode) for n in order[begin : begin + PORTION]]
        for begin in range(first, len(order), PORTION)
    )
    workers = args.workers if len(order) - first >= FEW else 1
    results = (item for portion in ordered(_pack, portions, workers) for item in portion)
    yield from progress(results, total=len(order), label=label, unit="images", first=first)


def _pack(portion: Sequence[tuple[str, Sample, Recode]]) -> list[Packed | Rejected]:
    done: list[Packed | Rejected] = []
    for key, sample, recode in portion:
        try:
            extension, content = usable(read(sample), recode)
        except Undecodable as error:
            done.append(Rejected(sample.origin, str(error)))
        else:
            done.append(Packed(key, extension, content, sample.label, sample.note))
    return done


def unique_keys(names: Sequence[str]) -> list[str]:
    """WebDataset keys: letters, digits, _ and - (no dots, it would cut there), each only once."""
    taken: set[str] = set()
    last: dict[str, int] = {}  # all numbers up to it are taken
    keys = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[-KEY_LENGTH:] or "_"
        number = last.get(plain, 1)
        key = plain if number == 1 else f"{plain}_{number}"
        while key in taken:
            number += 1
            key = f"{plain}_{number}"
        last[plain] = number
        taken.add(key)
        keys.append(key)
    return keys


def _plan(split: Split, args: argparse.Namespace) -> str:
    """A digest of all that determines the folder; UsageError where the options are unusable."""
    if not 0 <= args.seed < SHUFFLE:
        raise UsageError(f"--seed {args.seed}: not in 0 .. {SHUFFLE - 1}")
    limits, recode = Limits(args.images_per_shard, args.bytes_per_shard), Recode(args.recode)
    limits.check()
    if recode.short_side < 0 or not 1 <= args.quality <= 100:
        raise UsageError("--short-side: at least 0, --quality: 1 to 100")
    if args.workers < 0:
        raise UsageError(f"--workers {args.workers}: at least 0")
    digest = hashlib.sha256()
    options = [args.seed, *astuple(limits), recode.short_side, args.quality, *split.classes]
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
    }


def version() -> str:
    """Of this program, as dataset.json records it."""
    try:
        return importlib.metadata.version("poa_ds")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
