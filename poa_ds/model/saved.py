"""What a backbone keeps in memory between forward and backward, counted as autograd saves it.

Counted with the plain PyTorch operators; Triton kernels save less, but for add_ln beside sums in
float32. Each architecture counts its own in the saved.py of its folder, and tests compare that with
what autograd really holds.
"""

from dataclasses import dataclass, field

from poa_ds.model import shape as shapes
from poa_ds.model.options import Backbone
from poa_ds.model.shape import Shape
from poa_ds.model.space import Subnet

FLOAT = 4  # bytes of statistics in every precision
ROW_NUMBER = 8  # int64
Named = dict[str, float]


@dataclass(frozen=True)
class Streams:
    """Sizes that pass the same crops together, the intact one first.

    crops: (how many, pixels of a side) of each resolution, the trained one first.
    bytes_per_number: of weights and activations. channels: of the crops.
    """

    options: Backbone
    subnets: tuple[Subnet, ...]
    crops: tuple[tuple[int, int], ...]
    bytes_per_number: int
    channels: int

    @property
    def shape(self) -> Shape:
        """The numbers of the backbone, which is made for the first resolution."""
        return shapes.of(self.options, self.crops[0][1], channels=self.channels)

    @property
    def pixels(self) -> int:
        """Numbers of all crops together."""
        return sum(self.channels * n * side**2 for n, side in self.crops)


@dataclass(frozen=True)
class SavedBlock:
    """entry: bytes of the streams that enter; inside: what the block saves, by name."""

    entry: float
    inside: Named


@dataclass(frozen=True)
class Saved:
    """Bytes of a backbone: outside of its blocks, and each block."""

    outside: Named
    blocks: list[SavedBlock] = field(default_factory=list)

    def all_kept(self) -> Named:
        """Everything stays until the backward pass."""
        return added(self.outside, *(block.inside for block in self.blocks))

    def recomputed(self) -> Named:
        """Activation checkpointing: the blocks' inputs, and one block that is computed again."""
        largest = max((sum(block.inside.values()) for block in self.blocks), default=0.0)
        entries = sum(block.entry for block in self.blocks)
        return added(self.outside, {"inputs of the blocks": entries, "one block again": largest})


def added(*parts: Named) -> Named:
    """The sum under each name."""
    total: Named = {}
    for part in parts:
        for name, count in part.items():
            total[name] = total.get(name, 0.0) + count
    return total
