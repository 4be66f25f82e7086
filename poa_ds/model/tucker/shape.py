"""What a vision transformer whose matrices are made from a template amounts to in numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from poa_ds.model.options import Backbone, Range, Template
from poa_ds.model.shape import heads_divide, no_vit_parts, widest
from poa_ds.model.space import Depth
from poa_ds.model.vit.shape import VitShape

Ranks = tuple[int, int, int]
ATTENTION = 4  # square slices of a block's attention: q, k, v, projection


def slices(mlp_ratio: int) -> int:
    """Square slices of one block: of the attention, and of both layers of the MLP."""
    return ATTENTION + 2 * mlp_ratio


def full_ranks(dim: int, depth: int, mlp_ratio: int) -> Ranks:
    """Those that can express any matrices: along slices, rows and columns."""
    return slices(mlp_ratio) * depth, dim, dim


def ranks_of(options: Backbone) -> Ranks:
    """The ranks of the options; 0 stands for half of the full one."""
    full = full_ranks(widest(options), options.depth.max, options.mlp_ratio)
    first, rows, columns = (
        rank or most // 2 for rank, most in zip(options.template.ranks, full, strict=True)
    )
    return first, rows, columns


@dataclass(frozen=True, kw_only=True)
class TuckerShape(VitShape):
    """A ViT outside, and the template inside: its sizes count as the plain networks they are."""

    ranks: Ranks

    @classmethod
    def of(cls, options: Backbone, image_size: int, *, channels: int) -> "TuckerShape":
        plain = VitShape.of(options, image_size, channels=channels)
        return cls(**vars(plain), ranks=ranks_of(options))

    @staticmethod
    def of_depth(options: Backbone, depth: Depth) -> Backbone:
        """One size alone owns its matrices."""
        fixed = Range(depth, depth, 1)
        return replace(options, name="vit", depth=fixed, template=Template())

    @staticmethod
    def taken_out(options: Backbone, alone: Backbone) -> Backbone:
        return alone

    @staticmethod
    def problems(options: Backbone) -> Iterator[str]:
        yield from (*heads_divide(options), *no_vit_parts(options))
        if options.stages != Backbone().stages:
            yield "backbone.stages belongs to swin and resnet: tucker has backbone.depth"
        full = full_ranks(widest(options), options.depth.max, options.mlp_ratio)
        given = options.template.ranks
        for place, (rank, most) in enumerate(zip(given, full, strict=True)):
            if rank > most:
                yield f"backbone.template.ranks[{place}] {rank} is above the full rank {most}"

    def making(self) -> float:
        """Two products: the template for each slice, then its rows and its columns."""
        count, dim, _ = full_ranks(self.widest, self.deepest, self.mlp_ratio)
        first, rows, columns = self.ranks
        return 2.0 * count * (first * rows * columns + dim * rows * columns + dim * dim * columns)


SHAPE = TuckerShape
