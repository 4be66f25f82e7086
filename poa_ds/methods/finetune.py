"""Fine-tuning: one size and a classifier on top learn from labels; docs/evaluation.md.

What leaves the run, and is measured, is the moving average of both.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.data.store.order import MIXED, keyed
from poa_ds.engine.networks import Networks
from poa_ds.methods import mixing, stochastic_depth
from poa_ds.methods.method import State
from poa_ds.methods.mixing import Mix
from poa_ds.model.backbone import DropPath
from poa_ds.model.classifier import Classified
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe


def network(recipe: Recipe) -> Classified:
    """What learns, with random weights."""
    options = recipe.finetune
    return Classified(backbone(recipe), options.classes, projected=options.projected)


class Finetune:
    """No state, no targets from a teacher: a slot's labels come with its batch."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.space = recipe, derived.space(recipe)
        self.options = recipe.finetune

    def networks(self) -> Networks:
        torch.manual_seed(self.recipe.seed)
        return Networks(self._network(), self._network())

    def _network(self) -> Classified:
        return network(self.recipe)

    def sizes(self, step: int, slot: int) -> tuple[Subnet, ...]:
        return (self.space.intact,)

    def targets(
        self,
        forward: Callable[[Callable[[Networks], Any]], Any],
        batches: Sequence[Batch],
        values: StepValues,
        state: State,
    ) -> tuple[list[Mix], State]:
        """How the images of each slot are mixed."""
        return [self.mix(batch) for batch in batches], state

    def mix(self, batch: Batch) -> Mix:
        """Of its step and slot alone: any rank that gets this slot mixes it alike."""
        rng = keyed(MIXED, self.recipe.seed, batch.step, batch.slot)
        return Mix.drawn(self.options, rng)

    def loss(
        self, networks: Networks, batch: Batch, target: Mix, values: StepValues
    ) -> tuple[Tensor, dict[str, Tensor]]:
        images, share = target.of(batch.global_crops)
        options = self.options
        wanted = mixing.targets(batch.labels, options.classes, share, options.smoothing)
        loss = mixing.cross_entropy(networks.student(images, self.dropped(networks, batch)), wanted)
        return loss, {"cross_entropy": loss.detach()}

    def dropped(self, networks: Networks, batch: Batch) -> DropPath | None:
        """Stochastic depth of a slot; None: nothing is dropped."""
        sizes = self.sizes(batch.step, batch.slot)
        crops = [batch.global_crops]
        return stochastic_depth.draw(self.recipe, networks.backbone, batch, crops, sizes)

    def figures(self, target: Mix) -> dict[str, Tensor]:
        return {}
