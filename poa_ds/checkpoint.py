"""Checkpoints that any number of ranks and any ZeRO stage can load. safetensors and JSON only.

    step00000300/manifest.json            who holds which piece of which parameter; sizes, checksums
    step00000300/shard-00003.safetensors  rank 3's pieces `<parameter>|fp32`, `|exp_avg`,
                                          `|exp_avg_sq`, `|ema` (flat, fp32)
    step00000300/extra.safetensors        small tensors that are not parameters (centres)
    latest                                the newest folder's name, written last

A folder gets its name when it is complete. Every rank writes, and reads in place, only what it
owns; no tensor travels between ranks.
"""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from poa_ds import dist
from poa_ds.engine import Engine
from poa_ds.errors import UserError
from poa_ds.optim import STATE

FORMAT = 1
KEYS = ("fp32", *STATE)
EXTRA = "extra.safetensors"


@dataclass
class RunState:
    """What a resumed run needs besides tensors. step: optimizer steps that are done."""

    step: int = 0
    samples_seen: int = 0
    bad_steps: int = 0  # non-finite steps in a row
    skipped: int = 0  # steps that moved nothing, since the start
    data_hash: str = ""
    tracking: dict = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping) -> "RunState":
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in record.items() if k in known})


def save(
    engine: Engine,
    root: Path,
    state: RunState,
    *,
    extra: Mapping[str, Tensor],
    recipe: str,
    keep_last: int,
) -> Path:
    """Write step<step>/ and point `latest` at it; older folders beyond `keep_last` go.

    A collective. recipe: the resolved YAML, stored in the manifest.
    """
    final = root / f"step{state.step:08d}"
    partial = root / f".{final.name}.partial"
    if dist.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    path = partial / f"shard-{dist.rank():05d}.safetensors"
    pieces = {
        f"{name}|{key}": t.contiguous()
        for key in KEYS
        for name, t in engine.shards.state(key).items()
    }
    save_file(pieces, path)
    mine = _described(path) | {"pieces": {p.name: [p.first, p.count] for p in engine.shards.pieces}}
    shards = dist.all_gather_objects(mine)
    if dist.is_main():
        save_file({k: v.contiguous().cpu() for k, v in extra.items()}, partial / EXTRA)
        manifest = {
            "format": FORMAT,
            "state": asdict(state),
            "adam_steps": _adam_steps(engine),
            "counters": engine.counters(),
            "shapes": {n: list(_shape(p)) for n, (p, _) in engine.teacher.pairs.items()},
            "shards": shards,
            "extra": _described(partial / EXTRA),
            "recipe": recipe,
        }
        _write_durably(partial / "manifest.json", json.dumps(manifest))
        if final.exists():  # the same step again, after going back: the new one is as good
            shutil.rmtree(final)
        os.rename(partial, final)
        _write_durably(root / ".latest", final.name)
        os.replace(root / ".latest", root / "latest")
        _sync_folder(root)
        _prune(root, keep_last)
    dist.barrier()
    return final


def _described(path: Path) -> dict:
    """Name, size and checksum of a written file, once it is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"file": path.name, "bytes": path.stat().st_size, "crc32": _crc32(path)}


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc


def _write_durably(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _shape(parameter: torch.nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _adam_steps(engine: Engine) -> dict[str, float]:
    """Group key -> Adam's step count (equal for all flats of a group)."""
    state = engine.shards.optimizer.state
    return {
        _group_key(engine.shards.group(i)): float(state[flat]["step"])
        for i, flat in enumerate(engine.shards.flats())
    }


def _group_key(group: Mapping) -> str:
    return f"{group['module']}/{'decayed' if group['decays'] else 'plain'}"


def folders(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p.parent for p in root.glob("step*/manifest.json"))


def _prune(root: Path, keep_last: int) -> None:
    for old in folders(root)[:-keep_last]:
        shutil.rmtree(old)


def find(root: Path) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint whose files are all there and whole, why newer ones are not used)."""
    refused = []
    for folder in reversed(folders(root)):
        problem = _problem(folder)
        if problem is None:
            return folder, refused
        refused.append(f"{folder}: {problem}")
    return None, refused


def _problem(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files = [*manifest["shards"], manifest["extra"]]
    except (OSError, ValueError, KeyError) as error:
        return f"manifest.json cannot be read ({error})"
    if manifest.get("format") != FORMAT:
        return f"format {manifest.get('format')} is not {FORMAT}"
    for record in files:
        path = folder / record["file"]
        if not path.exists():
            return f"{record['file']} is missing"
        if path.stat().st_size != record["bytes"]:
            return f"{record['file']} has {path.stat().st_size} bytes, not {record['bytes']}"
        if _crc32(path) != record["crc32"]:
            return f"{record['file']} does not have its checksum"
    return None


def recipe(folder: Path) -> str:
    """The resolved recipe, as YAML, of the run that wrote the checkpoint."""
    return json.loads((folder / "manifest.json").read_text())["recipe"]


def load(engine: Engine, folder: Path) -> tuple[RunState, dict[str, Tensor]]:
    """Fill masters, moments and teacher from `folder`, in place. A collective.

    Returns the run's state and the extra tensors. UserError: another architecture.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    _check_architecture(engine, manifest["shapes"], folder)
    _read_pieces(engine, folder, manifest["shards"])
    steps, state = manifest["adam_steps"], engine.shards.optimizer.state
    for i, flat in enumerate(engine.shards.flats()):
        state[flat]["step"].fill_(steps[_group_key(engine.shards.group(i))])
    engine.set_counters(manifest["counters"])
    engine.weights_were_loaded()
    extra = load_file(folder / EXTRA)
    return RunState.of(manifest["state"]), {k: v.to(engine.device) for k, v in extra.items()}


def _check_architecture(engine: Engine, shapes: Mapping[str, list], folder: Path) -> None:
    ours = {n: list(_shape(p)) for n, (p, _) in engine.teacher.pairs.items()}
    if ours == shapes:
        return
    differing = [
        f"{name}: {shapes.get(name, 'absent')} in the checkpoint, {ours.get(name, 'absent')} here"
        for name in sorted(set(ours) | set(shapes))
        if ours.get(name) != shapes.get(name)
    ]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise UserError(
        f"{folder} holds another architecture: {'; '.join(differing[:3])}{more}. "
        "Use the recipe it was made with, or another output_dir"
    )


def _read_pieces(engine: Engine, folder: Path, shards: list[dict]) -> None:
    mine = {p.name: p for p in engine.shards.pieces}
    wanted = {key: engine.shards.state(key) for key in KEYS}
    filled = dict.fromkeys(mine, 0)
    for shard in shards:
        overlaps = {}
        for name, (begin, count) in shard["pieces"].items():
            if name not in mine:
                continue
            p = mine[name]
            first, last = max(begin, p.first), min(begin + count, p.first + p.count)
            if first < last:
                overlaps[name] = (first, last, begin)
        if not overlaps:
            continue
        # memory-mapped: only what is copied is read
        with safe_open(folder / shard["file"], framework="pt") as file:
            for name, (first, last, begin) in overlaps.items():
                for key in KEYS:
                    source = file.get_slice(f"{name}|{key}")[first - begin : last - begin]
                    start = first - mine[name].first
                    wanted[key][name][start : start + last - first].copy_(source)
                filled[name] += last - first
    missing = [name for name, p in mine.items() if filled[name] != p.count]
    if missing:
        raise UserError(f"{folder} lacks elements of {missing[0]} and {len(missing) - 1} more")
