"""What a network made from a template learns before it is written: its scalers and vectors.

The template itself rests. The teacher is the run's own intact network, the loss SEED's, since that
network is there and cannot collapse. All of that is ours (docs/methods/sweet.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import hypot, inf, isfinite
from pathlib import Path

import torch
from torch import nn

from poa_ds.data.batch import Batch
from poa_ds.data.loader import train_batches
from poa_ds.data.places import open_training
from poa_ds.data.spec import photometric_spec
from poa_ds.engine import optim
from poa_ds.engine.engine import pick_device
from poa_ds.engine.networks import Networks
from poa_ds.methods.seed import Seed, Student
from poa_ds.model import shape as shapes
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.projector import Projector, Straight
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Distill, Optimizer, Recipe
from poa_ds.system.errors import UserError
from poa_ds.system.progress import progress

WARMUP = 0.1  # of the steps


@dataclass(frozen=True)
class Fitted:
    """steps on images of shards, with the mean loss of the first and the last tenth of them."""

    steps: int
    images: int
    shards: Path
    first: float
    last: float

    def __str__(self) -> str:
        return f"scalers fitted in {self.steps:,} steps on {self.images:,} images of {self.shards}"


def fit(own: ElasticBackbone, recipe: Recipe, teacher: Path, shards: Path, steps: int) -> Fitted:
    """Move what may learn of `own`, a network of one size, in steps of the recipe's batches.

    recipe: of the run; teacher: the folder of its network. `own` comes back on the CPU.
    UserError: the shards hold too few images, or a loss is not finite.
    """
    recipe = _recipe(recipe, own, teacher, shards, steps)
    folder, device = open_training(recipe.data), torch.device(pick_device())
    recipe = _with_queue(recipe, len(folder))
    method = _Fitting(recipe, own.to(device))
    networks = method.networks().to(device)
    optimizer = optim.for_student(
        networks.student, depth=own.decay_depth, options=recipe.optimizer, average=None
    )
    batches = train_batches(recipe, folder, workers=recipe.data.workers)
    schedules, state, losses = derived.schedules(recipe, len(folder)), {}, []
    for step in progress(range(steps), total=steps, label="fit", unit="steps"):
        slots, values = [*_slots(batches, recipe, device)], schedules.at(step)
        targets, state = method.targets(networks, slots, values, state)
        totals = [
            method.loss(networks, batch, target, values)[0]
            for batch, target in zip(slots, targets, strict=True)
        ]
        loss = torch.stack(totals).mean()
        loss.backward()
        if not isfinite(_clip(networks.student, recipe.optimizer)):
            raise UserError(f"--fit: gradients of step {step + 1} are not finite: fewer --steps")
        for group in optimizer.param_groups:
            group["lr"] = values.lr
            group["weight_decay"] = values.weight_decay if group["decays"] else 0.0
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    own.cpu()
    tenth = max(steps // 10, 1)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    return Fitted(steps, len(folder), shards, first, last)


class _Fitting(Seed):
    """SEED with a student that is there already."""

    def __init__(self, recipe: Recipe, own: ElasticBackbone) -> None:
        super().__init__(recipe)
        self.own = own

    def networks(self) -> Networks:
        torch.manual_seed(self.recipe.seed)
        return Networks(Student(self.own, self.head(self.own)), leaves=[Projector, Straight])


def _recipe(
    recipe: Recipe, own: ElasticBackbone, teacher: Path, shards: Path, steps: int
) -> Recipe:
    """The run's recipe as one of the fit: one epoch of these steps, one learning rate for all."""
    options = shapes.one_size(recipe.backbone, own.space.intact)
    once = {"epochs": 1.0, "steps_per_epoch": steps, "warmup_epochs": WARMUP, "stretch": 1.0}
    return replace(
        recipe,
        precision="fp32",
        backbone=replace(options, names={}, drop_path=0.0),
        objective=replace(recipe.objective, method="seed", ibot=0.0, koleo=0.0),
        distill=Distill(teacher=str(teacher)),
        crops=replace(recipe.crops, local_count=0),
        schedule=replace(recipe.schedule, **once),
        optimizer=replace(recipe.optimizer, layer_decay=1.0, patch_embed_factor=1.0),
        data=replace(recipe.data, train=str(shards), mix={}, mode="index", images=0),
    )


def _with_queue(recipe: Recipe, images: int) -> Recipe:
    """The longest queue up to SEED's own that half of the images fill."""
    queue = derived.longest_queue(recipe, images)  # the recipe's own is SEED's
    if not queue:
        rows = recipe.batch.slots * recipe.batch.images_per_slot
        raise UserError(
            f"--fit {recipe.data.train} holds {images:,} images: {2 * rows:,} are needed, two steps"
            f" of the run's ({rows:,} each, batch.slots x batch.images_per_slot)"
        )
    return replace(recipe, distill=replace(recipe.distill, queue=queue))


def _slots(batches: Iterator[Batch], recipe: Recipe, device: torch.device) -> Iterator[Batch]:
    """What one step works on."""
    pixels = photometric_spec(recipe)
    for batch in islice(batches, recipe.batch.slots):
        yield batch.to(device).augmented(pixels)


def _clip(student: nn.Module, options: Optimizer) -> float:
    """Limit the gradients of network and head as a training does; the norm of before."""
    parts = ((student.backbone, options.clip_backbone), (student.projector, options.clip_heads))
    norms = (nn.utils.clip_grad_norm_(part.parameters(), most or inf) for part, most in parts)
    return hypot(*(norm.item() for norm in norms))
