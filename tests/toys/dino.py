"""Plain DINO of one size as a method of its own: a teacher, a student, running centres."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.engine.networks import Networks
from poa_ds.methods import losses
from poa_ds.methods.losses import Scores, Targets
from poa_ds.methods.method import State
from poa_ds.model.branch import Branch
from poa_ds.model.heads import HeadBank, PrototypeHead
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.system import dist


class Dino:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.size = recipe, derived.space(recipe).intact

    def networks(self) -> Networks:
        torch.manual_seed(self.recipe.seed)
        return Networks(self._branch(), self._branch(), leaves=[PrototypeHead])

    def _branch(self) -> Branch:
        own, options = backbone(self.recipe), self.recipe.heads
        dim, sizes = own.feature_width(self.size), (options.hidden, options.bottleneck)
        return Branch(own, HeadBank(dim, options.prototypes, hidden=sizes[0], bottleneck=sizes[1]))

    def sizes(self, step: int, slot: int) -> tuple[Subnet, ...]:
        return (self.size,)

    @torch.no_grad()
    def targets(
        self,
        forward: Callable[[Callable[[Networks], Any]], Any],
        batches: Sequence[Batch],
        values: StepValues,
        state: State,
    ) -> tuple[list[list[Tensor]], State]:
        """Per slot and head (2, B, K)."""
        slots = [forward(lambda n, b=b: self._scores(n.teacher, [b.global_crops])) for b in batches]
        temperature, found, centers = values.teacher_temperature, [[] for _ in batches], {}
        for head, scores in enumerate(zip(*slots, strict=True)):
            mean = dist.all_sum(torch.cat(scores).mean(0)) / dist.world_size()
            old = state.get(f"center.{head}", torch.zeros_like(mean))
            centers[f"center.{head}"] = 0.9 * old + 0.1 * mean
            bias = losses.centering_bias(old, temperature)
            for slot, own in zip(found, scores, strict=True):
                slot.append(losses.targets(own, temperature, bias).unflatten(0, (2, -1)))
        return found, centers

    def _scores(self, branch: Branch, crops: Sequence[Tensor]) -> list[Tensor]:
        """Per head (views, K)."""
        [stream] = branch.backbone.streams(crops, [self.size], [None] * len(crops))
        return branch.heads.scores(torch.cat([tokens[:, 0] for tokens in stream]))

    def loss(
        self, networks: Networks, batch: Batch, target: list[Tensor], values: StepValues
    ) -> tuple[Tensor, dict[str, Tensor]]:
        terms, size = [], batch.size
        all_scores = self._scores(networks.student, [batch.global_crops, batch.local_crops])
        for scores, of_head in zip(all_scores, target, strict=True):
            none = scores[:0]
            views = scores[: 2 * size].unflatten(0, (2, -1))
            said = Scores(views, scores[2 * size :].unflatten(0, (-1, size)), none)
            temperature = self.recipe.objective.student_temperature
            dino, _ = losses.match(said, Targets(of_head, none), none[:, 0], temperature)
            terms.append(dino)
        dino = torch.stack(terms).mean()
        return dino, {"dino": dino.detach()}

    def figures(self, target: list[Tensor]) -> dict[str, Tensor]:
        return {"health/target_maximum": target[0].amax(-1).mean()}
