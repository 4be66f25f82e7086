"""Writing shard folders: deterministic tars, their index, and a list of what could not be used.

The same samples, seed and limits give the same bytes. Every file is written under another name and
renamed when it is complete; dataset.json comes last, so a folder without it is unfinished.
"""

import argparse
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.progress import progress
from data_tools.tars import Limits, Packed, Writer
from poa_ds.data.manifest import MANIFEST
from poa_ds.data.pixels import Undecodable, pixels, png
from poa_ds.errors import UsageError, UserError

REJECTED = "rejected.jsonl"
SHUFFLE = 1 << 63  # second word of the key of the shuffle; epochs of a run take 0, 1, 2, ...
KEY_LENGTH = 80  # with extension and suffix it stays below the 100 bytes of a USTAR name
OWN = re.compile(r"shard-\d{6}\.tar(\.partial)?|(index\.npy|rejected\.jsonl)(\.partial)?")
EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}


@dataclass(frozen=True)
class Sample:
    """One image to be written."""

    name: str  # becomes the key
    origin: str  # names the image in rejected.jsonl
    content: bytes | Path
    label: int = -1
    note: dict[str, Any] | None = None  # becomes the member KEY.json


@dataclass(frozen=True)
class Rejected:
    """A file that is not in the shards, and why."""

    file: str
    reason: str


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


def prepare(folder: Path) -> None:
    """Leaves an empty folder: leftovers of an interrupted run go, anything else is an error."""
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder} holds finished shards: remove it or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(folder.iterdir())
        foreign = [path.name for path in found if not OWN.fullmatch(path.name)]
        if foreign:
            raise UsageError(f"{folder} is not empty ({foreign[0]}): choose another --out")
        for path in found:
            path.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


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
    """The summary of a new shard folder; args.seed shuffles, undecodable images are rejected.

    tool, args and source are written into dataset.json, to say how the folder was made.
    """
    if not 0 <= args.seed < SHUFFLE:
        raise UsageError(f"--seed {args.seed}: not in 0 .. {SHUFFLE - 1}")
    prepare(folder)
    lost = list(rejected)
    try:
        with Writer(folder, Limits(args.images_per_shard, args.bytes_per_shard)) as writer:
            for sample in _packed(samples, args.seed, folder.name, lost):
                writer.add(sample)
            if not writer.samples:
                reasons = "".join(f"\n  {item.file}: {item.reason}" for item in lost[:5])
                raise UserError(f"{source}: no usable image for {folder}{reasons}")
            lost.sort(key=lambda item: (item.file, item.reason))
            lines = [json.dumps({"file": item.file, "reason": item.reason}) for item in lost]
            writer.file(REJECTED, "".join(line + "\n" for line in lines).encode())
            manifest = writer.finish(tuple(classes), _made(tool, args, source), rejected=len(lost))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    counts = manifest.counts
    return Summary(folder, counts["samples"], len(manifest.shards), counts["bytes"], tuple(lost))


def _packed(
    samples: Sequence[Sample], seed: int, label: str, lost: list[Rejected]
) -> Iterator[Packed]:
    """The usable samples in shuffled order; the others are appended to `lost`."""
    keys = unique_keys([sample.name for sample in samples])
    order = np.argsort(np.random.Philox(key=[seed, SHUFFLE]).random_raw(len(keys)), kind="stable")
    for number in progress(order, total=len(order), label=label, unit="images"):
        sample = samples[number]
        try:
            extension, content = usable(_content(sample))
        except Undecodable as error:
            lost.append(Rejected(sample.origin, str(error)))
        else:
            yield Packed(keys[number], extension, content, sample.label, sample.note)


def _content(sample: Sample) -> bytes:
    if not isinstance(sample.content, Path):
        return sample.content
    if sample.content.exists() and not sample.content.is_file():
        raise Undecodable("not a regular file")  # reading a pipe would wait for ever
    try:
        return sample.content.read_bytes()
    except OSError as error:
        raise Undecodable(f"unreadable file: {error.strerror}") from error


def usable(content: bytes) -> tuple[str, bytes]:
    """(extension, content) of a member: JPEG and PNG as they are, other formats become PNG."""
    image, kind = pixels(content)
    extension = EXTENSIONS.get(kind)
    return (extension, content) if extension else ("png", png(image))


def unique_keys(names: Sequence[str]) -> list[str]:
    """WebDataset keys: letters, digits, _ and - (no dots, it would cut there), each only once."""
    taken: set[str] = set()
    keys = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[-KEY_LENGTH:] or "_"
        key, number = plain, 1
        while key in taken:
            number += 1
            key = f"{plain}_{number}"
        taken.add(key)
        keys.append(key)
    return keys


def _made(tool: str, args: argparse.Namespace, source: str) -> dict[str, Any]:
    """How the folder was made; nothing in it changes from run to run."""
    arguments = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in sorted(vars(args).items())
        if name != "out" and not callable(value)
    }
    try:
        version = importlib.metadata.version("poa_ds")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "tool": f"poa-ds shard {tool}",
        "version": version,
        "seed": args.seed,
        "source": source,
        "arguments": arguments,
    }
