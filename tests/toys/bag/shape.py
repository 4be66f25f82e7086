"""A bag of patches in numbers: width channels, depth blocks that look at each patch alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from poa_ds.model.options import Backbone, Range
from poa_ds.model.shape import values
from poa_ds.model.space import Depth, ElasticSpace, Subnet, spread


@dataclass(frozen=True)
class BagShape:
    widest: int
    deepest: int
    image_size: int
    patch_size: int
    channels: int

    @classmethod
    def of(cls, options: Backbone, image_size: int, *, channels: int) -> "BagShape":
        return cls(options.width.max, options.depth.max, image_size, options.patch_size, channels)

    @staticmethod
    def axes(options: Backbone) -> tuple[tuple[Depth, ...], float]:
        return values(options.depth), options.small_bias

    @staticmethod
    def of_depth(options: Backbone, depth: Depth) -> Backbone:
        return replace(options, depth=Range(depth, depth, 1))

    @staticmethod
    def taken_out(options: Backbone, alone: Backbone) -> Backbone:
        return alone

    @staticmethod
    def problems(options: Backbone) -> Iterator[str]:
        if options.drop_path:
            yield "backbone.drop_path: a bag has none"

    def contradictions(self, space: ElasticSpace) -> Iterator[str]:
        if not isinstance(space.intact.depth, int):
            yield "a bag has no stages"

    def members(self, subnet: Subnet) -> list[int]:
        return spread(subnet.depth, self.deepest)

    def features(self, subnet: Subnet) -> int:
        return subnet.width

    def grid(self, image_size: int) -> int:
        return image_size // self.patch_size

    def multiple(self) -> tuple[int, str]:
        return self.patch_size, f"backbone.patch_size {self.patch_size}"

    def parameters(self, subnet: Subnet) -> int:
        c = subnet.width
        return c * (self.channels * self.patch_size**2 + 1) + subnet.depth * (c * c + 3 * c) + 2 * c

    def flops(self, subnet: Subnet, image_size: int) -> float:
        c, patches = subnet.width, self.grid(image_size) ** 2
        return 2.0 * patches * (subnet.depth * c * c + c * self.channels * self.patch_size**2)

    def making(self) -> float:
        return 0.0

    def costs(self, space: ElasticSpace, image_size: int) -> tuple[float, ...]:
        return ()


SHAPE = BagShape
