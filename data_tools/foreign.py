"""`poa-ds index`: the index of WebDataset tars that other tools wrote; they stay as they are."""

import argparse
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.folder import files
from data_tools.parallel import ordered
from data_tools.shard import REJECTED, add_workers, version
from poa_ds.data.store.index import INDEX
from poa_ds.data.store.manifest import JOURNAL, MANIFEST, Manifest, ShardFile
from poa_ds.data.store.tarwalk import scan_tar
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.files import replace_bytes, replace_text
from poa_ds.system.progress import progress

COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds index`."""
    parser.add_argument("folder", type=Path, help="folder of tars, also in sub-folders")
    parser.add_argument(
        "--classes", type=Path, help="names of the classes, one per line (default: their numbers)"
    )
    add_workers(parser)


@dataclass(frozen=True)
class Found:
    """One tar: how dataset.json lists it, its rows, and its samples without an image."""

    shard: ShardFile
    rows: np.ndarray
    without_image: tuple[str, ...]


def run(args: argparse.Namespace) -> int:
    """Writes index.npy, rejected.jsonl and dataset.json beside the tars."""
    manifest = index_folder(args.folder, args.classes, workers=args.workers)
    samples, lost = manifest.counts["samples"], manifest.counts["rejected"]
    rest = f"{lost} samples without an image, see {args.folder / REJECTED}"
    rest = rest if lost else "every sample has one"
    print(f"{args.folder}: {samples} images, {len(manifest.shards)} tars; {rest}")
    return 0


def index_folder(folder: Path, names: Path | None, *, workers: int) -> Manifest:
    """The manifest that was written beside the tars; names: a file with those of the classes."""
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder / MANIFEST} exists: remove it to build the index anew")
    tars = _tars(folder)
    unfinished = sorted(folder.rglob(JOURNAL))
    if unfinished:
        raise UserError(
            f"{unfinished[0].parent} is being written by `poa-ds shard`, or that was cut short; "
            "the same command continues it and makes the index"
        )
    done = ordered(_scan, [(folder, tar) for tar in tars], workers)
    found = list(progress(done, total=len(tars), label="index", unit="tars"))
    index = np.concatenate([one.rows for one in found])
    if not len(index):
        raise UserError(f"{folder}: no image in {len(tars)} tars")
    lost = [
        {"file": f"{one.shard.file}, sample {key}", "reason": "no image"}
        for one in found
        for key in one.without_image
    ]
    content = io.BytesIO()
    np.save(content, index)
    manifest = Manifest(
        tuple(one.shard for one in found),
        _classes(names, int(index["label"].max()) + 1),
        hashlib.sha256(content.getvalue()).hexdigest(),
        {
            "samples": len(index),
            "bytes": sum(one.shard.bytes for one in found),
            "rejected": len(lost),
        },
        {"tool": "poa-ds index", "version": version()},
    )
    try:
        replace_text(folder / REJECTED, "".join(json.dumps(item) + "\n" for item in lost))
        replace_bytes(folder / INDEX, content.getvalue())
        replace_text(folder / MANIFEST, manifest.to_json())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    return manifest


def _tars(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    found, passed = files(folder, named_from=folder)
    if passed:
        raise UserError(f"{folder / passed[0].file}: {passed[0].reason}")
    names = sorted(str(path.relative_to(folder)) for path in found)
    packed = [name for name in names if name.endswith(COMPRESSED)]
    if packed:
        raise UserError(
            f"{folder / packed[0]} is compressed ({len(packed)} such files): samples cannot be "
            "read by their place in it; unpack it to a plain .tar"
        )
    tars = [name for name in names if name.endswith(".tar")]
    if not tars:
        raise UserError(f"{folder} has no .tar")
    return tars


def _scan(job: tuple[Path, str]) -> Found:
    folder, name = job
    path = folder / name
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        scan = scan_tar(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    shard = ShardFile(name, len(scan.rows), path.stat().st_size, digest)
    return Found(shard, scan.rows, scan.without_image)


def _classes(names: Path | None, count: int) -> tuple[str, ...]:
    """The names of at least `count` classes."""
    if names is None:
        return tuple(map(str, range(count)))
    try:
        found = tuple(names.read_text("utf-8").split("\n"))
    except FileNotFoundError:
        raise UsageError(f"--classes {names}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {names} cannot be read: {error}") from error
    found = found[:-1] if found[-1] == "" else found
    if len(found) < count:
        raise UserError(f"--classes {names}: {len(found)} names, but labels up to {count - 1}")
    return found
