"""Checkpoints that any number of ranks and any ZeRO stage can load. safetensors and JSON only.

    step00000300/manifest.json            who holds which piece of which parameter; sizes, checksums
    step00000300/shard-00003.safetensors  rank 3's pieces `<parameter>|fp32`, `|exp_avg`,
                                          `|exp_avg_sq`, `|ema` (flat, fp32)
    step00000300/extra.safetensors        small tensors that are not parameters (centres)

Every rank writes, and reads in place, only what it owns; no tensor travels between ranks.
saver.py writes what `snapshot` takes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from poa_ds.checkpoint import folders
from poa_ds.engine.engine import Engine
from poa_ds.engine.optim import STATE
from poa_ds.engine.stages import Part
from poa_ds.system import dist
from poa_ds.system.errors import UserError

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

    def count(self, images: int, *, applied: bool, finite: bool) -> None:
        """One more step is done."""
        self.step += 1
        self.samples_seen += images
        self.skipped += not applied
        self.bad_steps = 0 if finite else self.bad_steps + 1

    @classmethod
    def of(cls, record: Mapping) -> "RunState":
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in record.items() if k in known})


@dataclass(frozen=True)
class Snapshot:
    """This rank's part of a checkpoint. pieces: parameter -> (first element, count).

    about: what the manifest says besides the files; the same on all ranks.
    """

    step: int
    arrays: Mapping[str, np.ndarray]
    pieces: Mapping[str, tuple[int, int]]
    extra: Mapping[str, np.ndarray]
    about: Mapping[str, Any]


def snapshot(
    engine: Engine, state: RunState, *, extra: Mapping[str, Tensor], recipe: str, copied: bool
) -> Snapshot:
    """What a checkpoint of this moment consists of, in the memory of the CPU.

    recipe: the resolved YAML. copied: the training may go on before it is written; else the
    tensors of a CPU are shared with it.
    """
    tensors = {
        f"{name}|{key}": t for key in KEYS for name, t in engine.partitions.state(key).items()
    }
    about = {
        "state": asdict(state),
        "adam_steps": _adam_steps(engine),
        "counters": engine.counters(),
        "shapes": _shapes(engine),
        "ranks": dist.world_size(),
        "stage": engine.deepspeed.zero_optimization_stage(),
        "recipe": recipe,
    }
    return Snapshot(
        step=state.step,
        arrays={name: _array(t, copied) for name, t in tensors.items()},
        pieces={p.name: (p.first, p.count) for p in engine.partitions.parts},
        extra={name: _array(t, copied) for name, t in extra.items()},
        about=about,
    )


def _array(tensor: Tensor, copied: bool) -> np.ndarray:
    return tensor.detach().to("cpu", copy=copied).contiguous().numpy()


def _shapes(engine: Engine) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in engine.partitions.shapes.items()}


def _adam_steps(engine: Engine) -> dict[str, float]:
    """Group key -> Adam's step count (equal for all flats of a group)."""
    state = engine.optimizer.state
    return {
        _group_key(engine.stage.group(i)): float(state[flat]["step"])
        for i, flat in enumerate(engine.stage.flats())
    }


def _group_key(group: Mapping) -> str:
    key = f"{group['module']}/{'decayed' if group['decays'] else 'plain'}"
    return key if group["averaged"] else f"{key}/not averaged"


def find_together(root: Path) -> tuple[Path | None, list[str]]:
    """(the newest whole checkpoint, why newer ones are not used). A collective.

    All ranks share the reading; a checkpoint that one rank cannot read is not whole.
    """
    listed = None
    if dist.is_main():
        pointer = folders.pointer_problem(root)
        listed = (folders.listed(root), [pointer] if pointer else [])
    there, refused = dist.broadcast_object(listed)
    for folder in reversed(there):
        mine = folders.problem(folder, share=(dist.rank(), dist.world_size()))
        wrong = [(rank, p) for rank, p in enumerate(dist.all_gather_objects(mine)) if p]
        if not wrong:
            return folder, refused
        rank, cause = wrong[0]
        refused.append(f"{folder}: {cause}" + (f" (seen by rank {rank})" if rank else ""))
    return None, refused


def load(engine: Engine, folder: Path) -> tuple[RunState, dict[str, Tensor]]:
    """Fill masters, moments and teacher from `folder`, in place. A collective.

    Returns the run's state and the extra tensors. UserError: another architecture.
    """
    manifest = folders.read_manifest(folder)
    _check_architecture(engine, manifest["shapes"], folder)
    _read_pieces(engine, folder, manifest["shards"])
    steps, state = manifest["adam_steps"], engine.optimizer.state
    for i, flat in enumerate(engine.stage.flats()):
        state[flat]["step"].fill_(steps[_group_key(engine.stage.group(i))])
    engine.set_counters(manifest["counters"])
    engine.weights_were_loaded()
    try:
        extra = load_file(folder / EXTRA)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / EXTRA} cannot be read: {error}") from error
    return RunState.of(manifest["state"]), {k: v.to(engine.device) for k, v in extra.items()}


def _check_architecture(engine: Engine, shapes: Mapping[str, list], folder: Path) -> None:
    ours = _shapes(engine)
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
    mine = {p.name: p for p in engine.partitions.parts}
    wanted = {key: engine.partitions.state(key) for key in KEYS}
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
        _read_overlaps(folder / shard["file"], overlaps, mine, wanted)
        for name, (first, last, _) in overlaps.items():
            filled[name] += last - first
    missing = [name for name, p in mine.items() if filled[name] != p.count]
    if missing:
        raise UserError(f"{folder} lacks elements of {missing[0]} and {len(missing) - 1} more")


def _read_overlaps(
    path: Path,
    overlaps: Mapping[str, tuple[int, int, int]],
    mine: Mapping[str, Part],
    wanted: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Copy elements `first` to `last` of parameters; `begin` is the first one that the file has."""
    try:
        # memory-mapped: only what is copied is read
        with safe_open(path, framework="pt") as file:
            for name, (first, last, begin) in overlaps.items():
                start = first - mine[name].first
                for key in (key for key in KEYS if name in wanted[key]):
                    source = file.get_slice(f"{name}|{key}")[first - begin : last - begin]
                    wanted[key][name][start : start + last - first].copy_(source)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
