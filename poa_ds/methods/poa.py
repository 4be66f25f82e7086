"""POA: a teacher, the intact student and a smaller one that is drawn anew in every step."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.engine.networks import Networks
from poa_ds.methods import stochastic_depth
from poa_ds.methods.byol import Byol
from poa_ds.methods.method import State
from poa_ds.methods.prototypes import Prototypes
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe

LOSSES = {"prototypes": Prototypes, "byol": Byol}  # objective.loss


class Poa:
    """space: where smaller students are drawn, if not the recipe's.

    imitation: its weight beside a smaller student's other terms.
    """

    def __init__(self, recipe: Recipe, space: ElasticSpace | None = None) -> None:
        self.recipe, self.space = recipe, space or derived.space(recipe)
        self.objective, self.imitation = recipe.objective, recipe.objective.imitation
        self._losses = LOSSES[self.objective.loss](recipe)

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
        return self._losses.networks()

    def targets(
        self,
        forward: Callable[[Callable[[Networks], Any]], Any],
        batches: Sequence[Batch],
        values: StepValues,
        state: State,
    ) -> tuple[list[Any], State]:
        """What the teacher says of each slot, at the intact size."""
        return self._losses.targets(forward, batches, values, state, self.space.intact)

    def loss(
        self, networks: Networks, batch: Batch, target: Any, values: StepValues
    ) -> tuple[Tensor, dict[str, Tensor]]:
        subnets, weights = self.sizes(batch.step, batch.slot), self.weights
        if not values.all_sizes:  # so on all ranks
            subnets, weights = subnets[:1], (1.0,)
        crops = [c for c in (batch.global_crops, batch.local_crops) if len(c)]
        terms = self._losses.terms(
            networks,
            batch,
            target,
            subnets,
            values,
            drop_path=stochastic_depth.draw(self.recipe, networks.backbone, batch, crops, subnets),
            imitates=self.imitation > 0,
        )
        total = terms.total(weights, self.objective, imitation=self.imitation)
        return total, terms.detached()

    def features(self, target: Any) -> Tensor:
        return self._losses.features(target)

    def figures(self, target: Any) -> dict[str, Tensor]:
        return self._losses.figures(target)
