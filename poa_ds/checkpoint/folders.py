"""The folders of checkpoints: which are whole, how a new one takes its place, which ones go.

    RUN/checkpoints/step00000300/manifest.json   what the files are, with a checksum of its own
    RUN/checkpoints/step00000300/*.safetensors   see state.py
    RUN/checkpoints/latest                       the newest folder's name, written last

A folder gets its name when it is complete and on the disk. Names with a dot before them are
unfinished, or on their way out.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from poa_ds.system.errors import UserError
from poa_ds.system.files import replace_text, sync
from poa_ds.system.json_text import is_of, parse_object
from poa_ds.system.regular import check_regular

FORMAT = 2
MANIFEST, LATEST = "manifest.json", "latest"
BLOCK_BYTES = 1 << 24
_KEYS = ("format", "state", "adam_steps", "counters", "shapes", "shards", "extra", "recipe", "made")


def folder_of(root: Path, step: int) -> Path:
    return root / f"step{step:08d}"


def partial_of(root: Path, step: int) -> Path:
    """Where the files of a checkpoint are written before it is complete."""
    return root / f".{folder_of(root, step).name}.partial"


def listed(root: Path) -> list[Path]:
    """What has the name of a checkpoint, whole or not, oldest first.

    UserError: it cannot be told, which is not the same as that there is none.
    """
    if not os.path.lexists(root):
        return []
    try:
        names = os.listdir(root)
    except OSError as error:
        raise UserError(f"{root} cannot be listed: {error.strerror}") from error
    return sorted((root / name for name in names if re.fullmatch(r"step\d+", name)), key=step_of)


def newest(root: Path) -> Path | None:
    """The newest checkpoint that is whole by names and sizes: what training tries first.

    UserError: it cannot be told.
    """
    whole = (f for f in reversed(listed(root)) if problem(f, checksums=False) is None)
    return next(whole, None)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, once its checksum fits. UserError: missing, damaged, of another format."""
    path = folder / MANIFEST
    check_regular(path)
    try:
        manifest = parse_object(path.read_bytes())
        crc = manifest.pop("crc32", None)
        found = manifest.get("format")
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or "it is damaged"
        raise UserError(f"{MANIFEST} cannot be read ({cause})") from error
    if found != FORMAT:
        raise UserError(f"{MANIFEST} has format {found!r}, this program reads {FORMAT}")
    if crc != zlib.crc32(json.dumps(manifest).encode()) or not manifest.keys() >= {*_KEYS}:
        raise UserError(f"{MANIFEST} does not have its checksum")
    if not _is_well_formed(manifest):  # a checksum is no proof of where it comes from
        raise UserError(f"{MANIFEST} is damaged")
    return manifest


def _is_well_formed(manifest: dict[str, Any]) -> bool:
    """Whether everything has the kind that its readers count on."""
    kinds = dict.fromkeys(("state", "adam_steps", "counters", "shapes", "made"), dict)
    kinds |= {"shards": list, "recipe": str}
    if not all(is_of(manifest[name], kind) for name, kind in kinds.items()):
        return False
    file = {"file": str, "bytes": int, "crc32": int}
    records = [(manifest["extra"], file)]
    records += [(shard, file | {"pieces": dict}) for shard in manifest["shards"]]
    return all(
        isinstance(record, dict) and all(is_of(record.get(name), kinds[name]) for name in kinds)
        for record, kinds in records
    )


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write it with its checksum; on the disk when this returns."""
    crc = zlib.crc32(json.dumps(manifest).encode())
    replace_text(folder / MANIFEST, json.dumps({"crc32": crc, **manifest}))


def problem(folder: Path, *, share: tuple[int, int] = (0, 1), checksums: bool = True) -> str | None:
    """What is wrong with a checkpoint; None when nothing is.

    share: (i, n) reads the content of every n-th file alone, so that n ranks share the reading.
    """
    try:
        manifest = read_manifest(folder)
        for i, record in enumerate([*manifest["shards"], manifest["extra"]]):
            own = checksums and i % share[1] == share[0]
            wrong = _file_problem(folder, record, checksum=own)
            if wrong:
                return wrong
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"
    return None


def _file_problem(folder: Path, record: dict[str, Any], *, checksum: bool) -> str | None:
    name = record["file"]
    if Path(name).name != name:  # made by somebody else: it must not lead out of the folder
        return f"{MANIFEST} names a file outside of the folder: {name}"
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != record["bytes"]:
        return f"{name} has {path.stat().st_size} bytes, not {record['bytes']}"
    if checksum and _crc32(path) != record["crc32"]:
        return f"{name} does not have its checksum"
    return None


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def pointer_problem(root: Path) -> str | None:
    """What is wrong with `latest`: it names a checkpoint that is gone; None when nothing is."""
    path = root / LATEST
    if not path.is_file():
        return None
    name = path.read_bytes().decode(errors="replace").strip()
    if re.fullmatch(r"step\d+", name) and (root / name).is_dir():
        return None
    return f"{path}: it names {name[:40]!r}, which is not there"


def commit(root: Path, step: int, manifest: dict[str, Any]) -> Path:
    """The checkpoint that all ranks have written into the partial folder, under its name.

    UserError: files of other ranks are not there.
    """
    partial, final = partial_of(root, step), folder_of(root, step)
    write_manifest(partial, manifest)
    wrong = problem(partial, checksums=False)
    if wrong:
        raise UserError(f"{wrong}: do all hosts share the file system of {root}?")
    sync(partial)
    if final.exists():  # damaged, and the run went back behind it
        final.rename(_beside(final, "old"))
    partial.rename(final)
    shutil.rmtree(_beside(final, "old"), ignore_errors=True)
    replace_text(root / LATEST, final.name)
    return final


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def clean(root: Path) -> None:
    """Remove what a killed run left unfinished, so that no old part gets into a new checkpoint."""
    for old in root.glob(".step*.old"):
        name = root / old.name[1:].removesuffix(".old")
        if not name.exists():  # killed between the two renames of `commit`
            old.rename(name)
    for leftover in root.glob(".step*"):
        shutil.rmtree(leftover)


def discard(root: Path, folder: Path) -> None:
    """Remove what there is of a checkpoint that could not be completed."""
    # a disk that takes no writes may refuse this as well; the next start cleans up
    shutil.rmtree(partial_of(root, step_of(folder)), ignore_errors=True)


def prune(root: Path, newest: Path, *, keep_last: int, keep_every_steps: int) -> None:
    """Remove checkpoints before `newest` that are neither among the last ones nor to be kept.

    A damaged one does not count as one of the last. Later ones than `newest` stay: they are
    damaged, the run has gone back behind them and will replace them.
    """
    sound = 0
    for folder in reversed([f for f in listed(root) if step_of(f) <= step_of(newest)]):
        milestone = keep_every_steps and step_of(folder) % keep_every_steps == 0
        if sound >= keep_last and not milestone:
            going = _beside(folder, "gone")  # at once, so that none is ever half there
            folder.rename(going)
            shutil.rmtree(going)
        elif problem(folder, checksums=False) is None:
            sound += 1


def total_bytes(manifest: dict[str, Any]) -> int:
    """The size of the tensors' files."""
    records: Iterable[dict[str, Any]] = [*manifest["shards"], manifest["extra"]]
    return sum(record["bytes"] for record in records)
