"""The seam between a way to train and everything else: step, engine, checkpoints, evaluations."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.engine.networks import Networks
from poa_ds.model.space import Subnet
from poa_ds.recipe.methods import METHODS
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe

State = dict[str, Tensor]


class Method(Protocol):
    """One way to train, made from a recipe. What one step leaves to the next is `state` alone.

    A step calls `targets` once, then `loss` slot by slot. Both run on every rank alike: each
    module is entered equally often and in the same order, whatever the sizes and images are.
    """

    def __init__(self, recipe: Recipe) -> None: ...

    def networks(self) -> Networks:
        """What is trained, newly initialised; the weights follow from the recipe's seed alone."""
        ...

    def sizes(self, step: int, slot: int) -> tuple[Subnet, ...]:
        """The students of that slot, the intact one first; the same number for all slots.

        Where `values.all_sizes` of the step is false, the intact one learns alone.
        """
        ...

    def targets(
        self,
        forward: Callable[[Callable[[Networks], Any]], Any],
        batches: Sequence[Batch],
        values: StepValues,
        state: State,
    ) -> tuple[list[Any], State]:
        """(what each of this rank's slots learns, the state after the step), without gradients.

        forward: runs a function of the networks in the engine. state: tensors beside the
        parameters by name (empty at the start), equal on all ranks; they are saved, and the new
        ones count if the step is applied. Collectives are allowed.
        """
        ...

    def loss(
        self, networks: Networks, batch: Batch, target: Any, values: StepValues
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what is optimised, its detached terms by their names in metrics) of one slot."""
        ...

    def figures(self, target: Any) -> dict[str, Tensor]:
        """Figures about a slot's target for the metrics, by their names there; may be empty."""
        ...


@runtime_checkable
class Showing(Protocol):
    """A method whose targets hold what its teacher says of images: evaluation.online asks for it.

    A method without such a teacher leaves this function out.
    """

    def features(self, target: Any) -> Tensor:
        """Class features (2B, C) of a slot's global crops, crop-major, by the intact teacher."""
        ...


def method(recipe: Recipe) -> Method:
    """The method that the recipe names."""
    module, _, name = METHODS[recipe.objective.method].partition(":")
    return getattr(import_module(module), name)(recipe)
