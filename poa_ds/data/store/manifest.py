"""dataset.json: what a shard folder holds and how it was made."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

from poa_ds.data.store.leftovers import leftover
from poa_ds.data.store.scan import Naming
from poa_ds.system.errors import UserError
from poa_ds.system.regular import check_regular

FORMAT, VERSION = "poa-ds-shards", 1
MANIFEST = "dataset.json"
JOURNAL = "unfinished.jsonl"  # what a run that was cut short has finished


@dataclass(frozen=True)
class ShardFile:
    """One tar of a folder as dataset.json lists it."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of dataset.json."""

    shards: tuple[ShardFile, ...]
    classes: tuple[str, ...]
    index_sha256: str
    counts: dict[str, int] = field(default_factory=dict)  # samples, bytes, rejected
    made: dict[str, Any] = field(default_factory=dict)  # tool, version, seed, source, arguments

    def to_json(self) -> str:
        """The text of dataset.json, the same for the same content."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @property
    def naming(self) -> Naming:
        """How the members of the tars are named."""
        return Naming.of(self.made, MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a folder; UserError when it is absent, damaged or of another version."""
        path = folder / MANIFEST
        check_regular(path)
        try:
            return cls.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise UserError(_why_no_manifest(folder)) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error

    @classmethod
    def parse(cls, text: bytes, name: str) -> Self:
        """The manifest in the bytes of a dataset.json that errors call `name`."""
        try:
            content = json.loads(text.decode("utf-8"))
        except ValueError as error:
            raise UserError(f"{name} cannot be read: {error}") from error
        except RecursionError:
            raise UserError(f"{name} cannot be read: too many brackets") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{name} does not describe shards of poa-ds (no format: {FORMAT})")
        if content.get("version") != VERSION:
            raise UserError(
                f"{name}: version {content.get('version')}; this program reads {VERSION}"
            )
        try:
            shards = tuple(ShardFile(**shard) for shard in content["shards"])
            manifest = cls(
                shards,
                tuple(content["classes"]),
                content["index_sha256"],
                content["counts"],
                content["made"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{name} is incomplete: {error}") from error
        manifest._check(name)
        return manifest

    def _check(self, name: str) -> None:
        """UserError where a value is none that this program writes."""
        for shard in self.shards:
            values = tuple(asdict(shard).values())
            if tuple(map(type, values)) != (str, int, int, str) or min(values[1:3]) < 0:
                raise UserError(f"{name}: a shard is described by {values}")
            if _leads_out(shard.file):
                raise UserError(f"{name}: {shard.file} lies outside its folder")
        if not all(isinstance(text, str) for text in (*self.classes, self.index_sha256)):
            raise UserError(f"{name}: a class or the sha256 of the index is no text")
        if not isinstance(self.counts, dict) or not isinstance(self.made, dict):
            raise UserError(f"{name}: counts and made must be objects")
        Naming.of(self.made, name)


def _leads_out(file: str) -> bool:
    """Whether a path leaves the folder: one that was downloaded must not name other files."""
    path = PurePosixPath(file)
    return path.is_absolute() or ".." in path.parts or "\0" in file


def _why_no_manifest(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder of shards; `poa-ds shard --help` says how to make one"
    splits = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
    if splits:
        return f"{folder} holds the splits {', '.join(splits)}: name one, e.g. {folder / splits[0]}"
    if any(folder.glob("shard-*")) or (folder / JOURNAL).exists():
        return (
            f"{folder} has no {MANIFEST}: writing it was cut short; the same command continues it"
        )
    if all(leftover(path.name) for path in folder.iterdir()):
        return (
            f"{folder} is empty: it is not a folder of shards; "
            "where `poa-ds shard` was cut short, the same command continues it"
        )
    return f"{folder} has no {MANIFEST}: it is not a folder of shards (`poa-ds shard --help`)"
