"""All listed sizes in every step, towards one teacher. After DSPNet's published idea; numbers ours.

The idea (arXiv 2207.06075): a slimmable network whose sub-networks are all trained at once, and
learn from the large one. Here that is POA's objective with n students in place of two.
"""

from poa_ds.methods.poa import Poa
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.recipe.tree import Recipe


class Dspnet(Poa):
    """The teacher is the moving average at the largest size: the common target of all students."""

    def __init__(self, recipe: Recipe, space: ElasticSpace | None = None) -> None:
        super().__init__(recipe, space)
        self.imitation = recipe.slimmable.imitation
        # the same on all ranks in every step; the intact one first
        self._sizes = tuple(sorted(self.space.subnets(), key=self.space.cost, reverse=True))
        assert self._sizes[0] == self.space.intact

    def sizes(self, step: int, slot: int) -> tuple[Subnet, ...]:
        return self._sizes

    @property
    def weights(self) -> tuple[float, ...]:
        n, others = len(self._sizes), self._sizes[1:]
        if n == 1:
            return (1.0,)
        if self.recipe.slimmable.weights == "equal":
            return (1 / n,) * n
        if self.recipe.slimmable.weights == "poa":
            intact, rest = super().weights
            return intact, *[rest / len(others)] * len(others)
        intact = 1 + sum(size.width / self._sizes[0].width for size in others)
        return tuple(x / (intact + len(others)) for x in (intact, *[1.0] * len(others)))
