"""POA: a teacher, the intact student and a smaller one that is drawn anew in every step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.engine.networks import Networks
from poa_ds.methods import health, stochastic_depth, targets
from poa_ds.methods.method import State
from poa_ds.methods.targets import Assignments
from poa_ds.methods.terms import slot_terms
from poa_ds.model.branch import Branch
from poa_ds.model.heads import HeadBank, PrototypeHead
from poa_ds.model.layers import scale_inputs
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe


class Poa:
    """space: where smaller students are drawn, if not the recipe's.

    imitation: its weight beside a smaller student's other terms.
    """

    imitation = 1.0

    def __init__(self, recipe: Recipe, space: ElasticSpace | None = None) -> None:
        self.recipe, self.space = recipe, space or derived.space(recipe)
        self.objective = recipe.objective

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the students, in the order of `sizes`: lambda and 1 - lambda."""
        return self.objective.intact_weight, 1 - self.objective.intact_weight

    def sizes(self, step: int, slot: int) -> tuple[Subnet, ...]:
        recipe = self.recipe
        slots, policy = recipe.batch.slots, recipe.draws
        drawn = self.space.draw(step, slot, seed=recipe.seed, slots=slots, policy=policy)
        return self.space.intact, drawn

    def networks(self) -> Networks:
        torch.manual_seed(self.recipe.seed)
        return Networks(self._branch(), self._branch(), leaves=[PrototypeHead])

    def _branch(self) -> Branch:
        own = self._heads() if self.recipe.heads.separate_ibot else None
        return Branch(backbone(self.recipe), self._heads(), own)

    def _heads(self) -> HeadBank:
        options = self.recipe.heads
        heads = HeadBank(
            derived.shape(self.recipe).features(self.space.intact),
            options.prototypes,
            hidden=options.hidden,
            bottleneck=options.bottleneck,
            layers=options.layers,
            init=options.init,
        )
        scale_inputs(heads, self.recipe.backbone.input_scale)
        return heads

    def _ibot(self, values: StepValues) -> bool:
        return values.ibot_active and self.objective.ibot > 0

    def targets(
        self,
        forward: Callable[[Callable[[Networks], Any]], Any],
        batches: Sequence[Batch],
        values: StepValues,
        state: State,
    ) -> tuple[list[Assignments], State]:
        """state: the running centres of softmax targets, empty with Sinkhorn."""
        intact, ibot = self.space.intact, self._ibot(values)
        shown = [
            forward(lambda networks, b=b: targets.teach(networks.teacher, b, intact, ibot=ibot))
            for b in batches
        ]
        temperature, centers = values.teacher_temperature, dict(state)
        if self.objective.centering == "softmax":
            return targets.center(shown, temperature, centers), centers
        iterations = self.objective.sinkhorn_iterations
        return targets.balance(shown, temperature, iterations=iterations), centers

    def loss(
        self, networks: Networks, batch: Batch, target: Assignments, values: StepValues
    ) -> tuple[Tensor, dict[str, Tensor]]:
        subnets, weights = self.sizes(batch.step, batch.slot), self.weights
        if not values.all_sizes:  # so on all ranks
            subnets, weights = subnets[:1], (1.0,)
        crops = [c for c in (batch.global_crops, batch.local_crops) if len(c)]
        terms = slot_terms(
            networks.student,
            batch,
            target,
            subnets,
            ibot=self._ibot(values),
            temperature=self.objective.student_temperature,
            drop_path=stochastic_depth.draw(self.recipe, networks.backbone, batch, crops, subnets),
            imitates=self.imitation > 0,
        )
        total = terms.total(weights, self.objective, imitation=self.imitation)
        return total, terms.detached()

    def figures(self, target: Assignments) -> dict[str, Tensor]:
        tokens = target.projections.tokens
        assert tokens is not None
        return health.figures(tokens, map(target.cls_targets, range(len(target.cls_biases))))
