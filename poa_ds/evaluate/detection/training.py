"""A detector learns through the engine of pre-training: ZeRO, checkpoints, a stop all agree on.

A slot's draws (scales, anchors, boxes, branches) follow from seed, step and slot alone, so that any
number of ranks that divides the slots learns the same, and a stopped training goes on as it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from poa_ds.checkpoint.saver import Saver
from poa_ds.checkpoint.state import RunState, find_together, load, snapshot
from poa_ds.data.store.order import DROP_PATH, keyed
from poa_ds.engine.engine import Engine, Update
from poa_ds.evaluate.detection.model import Detecting
from poa_ds.evaluate.detection.pictures import Target
from poa_ds.evaluate.detection.settings import Settings
from poa_ds.recipe import ds_json
from poa_ds.recipe import load as recipes
from poa_ds.recipe.tree import Batch, Recipe
from poa_ds.system import dist
from poa_ds.system.console import say
from poa_ds.system.errors import UserError

LOG_STEPS = 50
Slots = Iterator[tuple[int, list[Tensor], list[Target]]]


class Training:
    """state: how far it is; where `folder` holds a checkpoint, that far already."""

    def __init__(
        self, networks: Detecting, recipe: Recipe, settings: Settings, *, steps: int, folder: Path
    ) -> None:
        self.settings, self.steps = settings, steps
        self.recipe = _recipe(recipe, settings)
        stage = {} if dist.world_size() == 1 else {"zero_optimization": {"stage": 1}}
        ds_config = ds_json.resolved(self.recipe, stage, dist.world_size())
        self.engine = Engine(networks, self.recipe.optimizer, ds_config)
        found, refused = find_together(folder)
        for line in refused if dist.is_main() else ():
            say(f"not used: {line}")
        self.state = load(self.engine, found)[0] if found else RunState()
        self.saver = Saver(
            folder,
            keep_last=1,
            keep_every_steps=0,
            background=False,
            device=self.engine.device,
            saved_step=self.state.step if found else -1,
        )

    def run(self, slots: Slots, *, asked: Sequence[int], save_every: int) -> bool:
        """All steps that are left; False where a signal came: it is saved. A collective.

        slots: of this rank, from the next step on. UserError: numbers that are not finite.
        """
        while self.state.step < self.steps:
            terms, stop = self._step(slots, asked)
            step = self.state.step
            if step % LOG_STEPS == 0 or step == self.steps:
                self._log(terms)
            if step < self.steps and (stop or step % save_every == 0):
                self.save()
            if stop and step < self.steps:
                return False
        return True

    def _log(self, terms: Mapping[str, Tensor]) -> None:
        """Losses as means over all slots of all ranks: only here does the host wait for them."""
        means = dist.all_sum(torch.stack([*terms.values()])) / dist.world_size()
        words = zip(terms, dist.on_host(means), strict=True)
        if dist.is_main():
            losses = ", ".join(f"{name} {x:.3f}" for name, x in words)
            say(f"step {self.state.step:,} of {self.steps:,}: {losses}")

    def _step(self, slots: Slots, asked: Sequence[int]) -> tuple[dict[str, Tensor], bool]:
        """(losses, as means over this rank's slots, whether a rank asks to stop)."""
        number, settings = self.state.step, self.settings
        finite = torch.ones((), dtype=torch.bool, device=self.engine.device)
        every = []
        for _ in range(settings.slots // dist.world_size()):
            slot, images, targets = next(slots)
            total, terms = self.engine.forward(
                lambda networks: losses(networks, images, targets, settings.seed, number, slot)  # noqa: B023
            )
            finite &= total.isfinite()
            every.append(terms)
            self.engine.backward(total)
        update = Update(settings.rate(number, self.steps), settings.weight_decay, momentum=1.0)
        report = self.engine.step(update, finite=finite, stop=bool(asked))
        if not report.finite:
            raise UserError(
                f"step {number + 1:,}: losses or gradients are not finite; use a smaller --lr"
            )
        self.state.count(settings.batch, applied=report.applied, finite=report.finite)
        means = {name: torch.stack([one[name] for one in every]).mean() for name in every[0]}
        return means, report.stop

    def save(self) -> None:
        """A checkpoint of now, on the disk. A collective."""
        text = recipes.to_yaml(self.recipe)
        self.saver.begin(snapshot(self.engine, self.state, extra={}, recipe=text, copied=False))


def losses(
    networks: Detecting,
    images: Sequence[Tensor],
    targets: Sequence[Target],
    *key: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(sum, each by its name) of one slot. key: seed, step and slot, from which all draws follow.

    images: (3, H, W) uint8.
    """
    device = next(networks.parameters()).device
    near = [image.to(device).float() / 255 for image in images]
    there = [{name: x.to(device) for name, x in target.items()} for target in targets]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(random_seed(*key))
        terms = networks.student(near, there)
    return sum(terms.values()), {name: x.detach() for name, x in terms.items()}


def random_seed(*key: int) -> int:
    return keyed(DROP_PATH, *key).getrandbits(63)


def _recipe(recipe: Recipe, settings: Settings) -> Recipe:
    """The run's recipe with the optimizer's and the batch's numbers of this training, in fp32."""
    optimizer = replace(
        recipe.optimizer,
        layer_decay=settings.layer_decay,
        patch_embed_factor=1.0,
        clip_backbone=0.0,
        clip_heads=0.0,
        decayed="matrices",
    )
    batch = Batch(settings.slots, settings.images_per_slot)
    return replace(recipe, optimizer=optimizer, batch=batch, precision="fp32")
