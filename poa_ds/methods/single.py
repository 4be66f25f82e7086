"""One size alone with the same objective: what an elastic run is compared with."""

from poa_ds.methods.poa import Poa
from poa_ds.model.space import Subnet


class Single(Poa):
    """DINO, iBOT and KoLeo of the intact network, without a smaller student."""

    weights = (1.0,)

    def sizes(self, step: int, slot: int) -> tuple[Subnet, ...]:
        return (self.space.intact,)
