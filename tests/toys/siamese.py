"""A method without a teacher: two views, a predictor, nothing that is averaged (as SimSiam)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.data.batch import Batch
from poa_ds.engine.networks import Networks
from poa_ds.methods.method import State
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe


class Predicting(nn.Module):
    def __init__(self, own: ElasticBackbone, dim: int) -> None:
        super().__init__()
        self.backbone, self.predictor = own, nn.Linear(dim, dim)


class Siamese:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.size = recipe, derived.space(recipe).intact

    def networks(self) -> Networks:
        torch.manual_seed(self.recipe.seed)
        own = backbone(self.recipe)
        return Networks(Predicting(own, own.feature_width(self.size)))

    def sizes(self, step: int, slot: int) -> tuple[Subnet, ...]:
        return (self.size,)

    def targets(
        self,
        forward: Callable[[Callable[[Networks], Any]], Any],
        batches: Sequence[Batch],
        values: StepValues,
        state: State,
    ) -> tuple[list[None], State]:
        return [None] * len(batches), state

    def loss(
        self, networks: Networks, batch: Batch, target: None, values: StepValues
    ) -> tuple[Tensor, dict[str, Tensor]]:
        features = networks.backbone(batch.global_crops, self.size)[:, 0]
        predicted = networks.student.predictor(features)
        alike = F.cosine_similarity(predicted, features.detach().roll(batch.size, 0))
        loss = -alike.mean()
        return loss, {"siamese": loss.detach()}

    def figures(self, target: None) -> dict[str, Tensor]:
        return {}
