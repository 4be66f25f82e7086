"""POA with a third student, the smallest one, in every slot."""

from poa_ds.methods.poa import Poa
from poa_ds.model.space import Subnet


class Three(Poa):
    weights = (0.6, 0.2, 0.2)

    def sizes(self, step: int, slot: int) -> tuple[Subnet, ...]:
        return (*super().sizes(step, slot), self.space.smallest)
