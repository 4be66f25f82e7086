"""What the ranks of the tests run: a few real training steps on made batches, any ZeRO stage.

python -m tests.distributed.programs.worker OUT '{"stages": [2], "steps": [0, 4], ...}'
"""

import json
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from poa_ds.checkpoint import state as checkpoint
from poa_ds.checkpoint.saver import Saver
from poa_ds.checkpoint.state import RunState
from poa_ds.data.batch import Batch
from poa_ds.engine import engine
from poa_ds.engine.engine import Engine
from poa_ds.methods.method import method
from poa_ds.recipe import derived, ds_json, load
from poa_ds.recipe.tree import Recipe
from poa_ds.run import online
from poa_ds.run.online import Answered
from poa_ds.run.step import Stepper
from poa_ds.system import dist
from tests.support.same_run import sample

IMAGES, SLOTS, CLASSES = 4, 4, 3


def recipe_with(**changes: object) -> Recipe:
    """A tiny run whose slots draw different sizes, with stochastic depth."""
    tree = {
        "precision": "fp32",
        "draws": "per_slot",
        "tracking": "none",
        "backbone": {
            "width": {"min": 32, "max": 64, "step": 16},
            "depth": {"min": 2, "max": 4, "step": 1},
            "patch_size": 8,
            "head_dim": 16,
            "layer_scale": 1.0,
            "drop_path": 0.2,
            "init": "torch",
        },
        "heads": {"prototypes": [48, 96], "hidden": 64, "bottleneck": 24, "init": "xavier"},
        "crops": {"global_size": 32, "local_count": 3, "local_size": 16},
        "batch": {"slots": SLOTS, "images_per_slot": IMAGES},
        "schedule": {
            "epochs": 1,
            "steps_per_epoch": 20,
            "warmup_epochs": 0.1,
            "ibot_start_epoch": 0.1,
            "freeze_last_layer_epochs": 0.05,
            "base_lr": 0.02,
            "momentum": 0.9,
            "teacher_temperature_epochs": 0.5,
        },
        "evaluation": {"sizes": ["all"]},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            tree.setdefault(section, {})[key] = value
        else:
            tree[section] = value
    return load.from_dict(tree)


def made_batch(recipe: Recipe, at: int, slot: int) -> Batch:
    g = torch.Generator().manual_seed(1000 * at + slot)
    if recipe.finetune.classes:
        return labelled_batch(recipe, at, slot, g)
    batch = Batch.of(
        torch.randn(2 * IMAGES, 3, 32, 32, generator=g),
        torch.randn(recipe.crops.local_count * IMAGES, 3, 16, 16, generator=g),
        torch.rand(2 * IMAGES, derived.shape(recipe).grid(32) ** 2, generator=g) < 0.3,
        step=at,
        slot=slot,
    )
    return replace(batch, labels=torch.randint(-1, CLASSES, (IMAGES,), generator=g))


def labelled_batch(recipe: Recipe, at: int, slot: int, g: torch.Generator) -> Batch:
    """One crop of each image, and its label."""
    crops, empty = torch.randn(IMAGES, 3, 32, 32, generator=g), torch.zeros(0)
    masks = torch.zeros(IMAGES, derived.shape(recipe).grid(32) ** 2, dtype=torch.bool)
    labels = torch.randint(recipe.finetune.classes, (IMAGES,), generator=g)
    return Batch(at, slot, crops, empty, masks, empty, empty, labels=labels, views=1)


class Run:
    """One engine of one ZeRO stage, and the steps it takes."""

    def __init__(self, stage: int, recipe: Recipe, zero: dict | None = None) -> None:
        file = {"zero_optimization": {"stage": stage} | (zero or {})}
        if recipe.precision == "bf16" and stage == 1:
            file["data_types"] = {"grad_accum_dtype": "bf16"}
        ds_config = ds_json.resolved(recipe, file, dist.world_size())
        self.recipe = recipe
        trained = method(recipe)
        self.engine = Engine(trained.networks(), recipe.optimizer, ds_config)
        probe = online.of_recipe(recipe, CLASSES, self.engine.device)
        self.stepper = Stepper(recipe, self.engine, trained, probe)
        self.schedules = derived.schedules(recipe, 10**6)

    def steps(self, first: int, last: int, *, poison: int | None = None) -> list[dict]:
        """Train; one record per step. poison: a step whose first image of slot 1 is NaN."""
        return [self._one(at, poison == at) for at in range(first, last)]

    def _one(self, at: int, poisoned: bool) -> dict:
        own = SLOTS // dist.world_size()
        batches = [made_batch(self.recipe, at, dist.rank() * own + i) for i in range(own)]
        if poisoned:
            batches = [_poisoned(b) if b.slot == 1 else b for b in batches]
        result = self.stepper.step(batches, self.schedules.at(at))
        return {
            "terms": result.means(),
            "norms": result.gradient_norms,
            "finite": result.finite,
            "applied": result.applied,
            "skipped": self.engine.deepspeed.skipped_steps,
            "sizes": [str(s) for r in dist.all_gather_objects(result.sizes) for s in r],
            "state": {n: zlib.crc32(t.numpy()) for n, t in sorted(self.stepper.saved().items())},
            "online": self.online(result.online),
            **self.weights(at),
        }

    def online(self, answered: Answered | None) -> dict | None:
        """What the probe answered, and what it has learnt."""
        if answered is None:
            return None
        right, labelled = map(float, answered)
        weights = self.stepper.probe.weights.flatten().tolist()
        return {"right": right, "labelled": labelled, "weights": weights}

    def save(self, root: Path, at: int) -> None:
        """A checkpoint after `at` steps, and beside it what its tensors were."""
        saver = Saver(root, keep_last=2, keep_every_steps=0, background=True)
        state, text = RunState(step=at, samples_seen=1), load.to_yaml(self.recipe)
        extra = self.stepper.saved()
        taken = checkpoint.snapshot(self.engine, state, extra=extra, recipe=text, copied=True)
        saver.begin(taken)
        saver.finish()
        digests = self.digests()
        if dist.is_main():
            (root / "digests.json").write_text(json.dumps(digests))

    def load(self, root: Path) -> RunState:
        """Continue from the newest checkpoint; every tensor must be what it was, to the bit."""
        folder, _ = checkpoint.find_together(root)
        state, extra = checkpoint.load(self.engine, folder)
        self.stepper.restore(extra)
        assert self.digests() == json.loads((root / "digests.json").read_text())
        return state

    def digests(self) -> dict[str, int]:
        """Checksums of the whole masters, moments and teacher, wherever their pieces are."""
        found = {}
        for key in checkpoint.KEYS:
            mine = self.engine.partitions.state(key)
            parts = [p for p in self.engine.partitions.parts if p.name in mine]
            own = [(p.name, p.first, mine[p.name].numpy()) for p in parts]
            pieces = [piece for rank in dist.all_gather_objects(own) for piece in rank]
            for name, _, values in sorted(pieces, key=lambda piece: piece[:2]):
                found[f"{name}|{key}"] = zlib.crc32(values, found.get(f"{name}|{key}", 0))
        return found

    def weights(self, at: int) -> dict:
        """The teacher's fp32 weights: a checksum and a sample; and what may have moved them."""
        whole = self.engine.deployed()
        parts = ("backbone.", "heads.", "ibot_heads.", "projector.", "classifier.")
        assert all(name.startswith(parts) for name in whole)
        checksum = 0
        for _, tensor in sorted(whole.items()):
            checksum = zlib.crc32(tensor.contiguous().numpy(), checksum)
        return {
            "teacher": checksum,
            "sample": sample(whole, self.recipe.backbone.head_dim),
            "learning_rates": sum(self.schedules.at(step).lr for step in range(at + 1)),
        }


def _poisoned(batch: Batch) -> Batch:
    crops = batch.global_crops.clone()
    crops[0, 0, 0, 0] = torch.nan
    return replace(batch, global_crops=crops)


def teacher_is_exact(run: Run, first: int, last: int) -> dict:
    """Follow the average by hand from the masters; compare with the state and the forward."""
    parts, by_hand = run.engine.partitions, None
    worst, moved = 0.0, 0.0
    start = {n: t.clone() for n, t in parts.state("ema").items()}
    for at in range(first, last):
        momentum = run.schedules.at(at).momentum
        run.steps(at, at + 1)
        masters, ema = parts.state("fp32"), parts.state("ema")
        by_hand = by_hand or {n: t.double() for n, t in start.items()}
        for name, master in masters.items():
            by_hand[name] = momentum * by_hand[name] + (1 - momentum) * master.double()
            worst = max(worst, (by_hand[name] - ema[name]).abs().max().item())
    for name, t in parts.state("ema").items():
        moved = max(moved, (t - start[name]).abs().max().item())
    return {"worst": worst, "moved": moved, "forward": forward_difference(run)}


def forward_difference(run: Run) -> float:
    """The teacher's working weights against its rounded fp32 master."""
    import deepspeed

    whole, worst = run.engine.deployed(), 0.0
    for name, (_, teacher) in run.engine.networks.averaged().items():
        gathered = [teacher] if run.engine.deepspeed.zero_optimization_stage() == 3 else []
        with deepspeed.zero.GatheredParameters(gathered):
            rounded = whole[name].to(teacher.dtype)
            worst = max(worst, (teacher.data.float() - rounded.float()).abs().max().item())
    return worst


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine.start_processes("cpu")
    recipe, result = recipe_with(**wanted.get("recipe", {})), {}
    for stage in wanted["stages"]:
        if wanted.get("teacher"):
            run = Run(stage, recipe)
            result[str(stage)] = teacher_is_exact(run, *wanted["teacher"])
            continue
        sources = wanted.get("load", [None])  # of all stages, or a list for each
        for source in sources[str(stage)] if isinstance(sources, dict) else sources:
            run = Run(stage, recipe)
            if source:
                state = run.load(Path(source))
                assert state.step == wanted["steps"][0], state
            records = run.steps(*wanted["steps"], poison=wanted.get("poison"))
            result[
                f"{stage}" + (f"<{Path(source).parent.name}/{Path(source).name}" if source else "")
            ] = records
            if wanted.get("save"):
                run.save(out / f"stage{stage}", wanted["steps"][1])
                result[f"{stage}+"] = run.steps(wanted["steps"][1], wanted["save"])
    if dist.is_main():
        (out / "result.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
