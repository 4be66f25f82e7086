"""What a ResNet amounts to in numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from operator import gt

from poa_ds.model.options import COLOURS, Backbone
from poa_ds.model.shape import (
    Stages,
    map_sides,
    no_residual,
    no_template,
    no_vit_parts,
    spread_stages,
    stages_are_right,
    undivided,
    widest,
    widths,
)
from poa_ds.model.space import Depth, ElasticSpace, Subnet


@dataclass(frozen=True, kw_only=True)
class ResNetShape:
    """ResNet of bottlenecks; width = inner channels of stage 1, doubling; depth: per stage.

    Blocks receive and return as many channels whatever the size: twice the widest inner width
    (docs/method.md 2), or what `outer` says.
    """

    widest: int
    stages: Stages
    image_size: int
    norm_groups: int
    stem: int
    outer: int = 0  # channels that leave stage 1; 0: twice the widest inner ones
    channels: int = COLOURS
    patch_size: int = 4  # stride of stem and pooling

    @classmethod
    def of(cls, options: Backbone, image_size: int, *, channels: int) -> "ResNetShape":
        return cls(
            widest=widest(options),
            stages=tuple(most for _, most in options.stages),
            image_size=image_size,
            norm_groups=options.norm_groups,
            stem=leaving(options) // 4,
            outer=options.outer,
            channels=channels,
        )

    @staticmethod
    def axes(options: Backbone) -> tuple[tuple[Depth, ...], float]:
        ranges = (range(least, most + 1) for least, most in options.stages)
        return tuple(sorted(product(*ranges), key=sum)), 1.0

    @staticmethod
    def of_depth(options: Backbone, depth: Depth) -> Backbone:
        return replace(options, stages=tuple((blocks, blocks) for blocks in depth))

    @staticmethod
    def taken_out(options: Backbone, alone: Backbone) -> Backbone:
        return replace(alone, outer=leaving(options))

    @property
    def outputs(self) -> int:
        """Channels that leave stage 1; doubling."""
        return self.outer or 2 * self.widest

    @staticmethod
    def problems(options: Backbone) -> Iterator[str]:
        yield from (
            *stages_are_right(options, (0, 1, 2, 3)),
            *no_template(options),
            *no_vit_parts(options),
            *no_residual(options),
        )
        if options.patch_size != ResNetShape.patch_size:
            yield f"backbone.patch_size {options.patch_size}: resnet's stem reduces by 4, write 4"
        for width in (*widths(options), leaving(options) / 4):
            if width % options.norm_groups:
                yield (
                    f"backbone.width: {width:g} channels do not divide into backbone.norm_groups"
                    f" {options.norm_groups} (the stem has half of width.max, or a quarter of"
                    " backbone.outer)"
                )
                return

    def features(self, subnet: Subnet) -> int:
        return 8 * self.outputs

    def grid(self, image_size: int) -> int:
        return 2 * map_sides(image_size, self.patch_size)[-1]

    def multiple(self) -> tuple[int, str]:
        return 32, "32, the stride of resnet"

    def contradictions(self, space: ElasticSpace) -> Iterator[str]:
        yield from undivided((*space.widths, self.stem), self.norm_groups, "norm_groups")
        for subnet in space.subnets():
            if len(subnet.stages) != 4 or any(map(gt, subnet.stages, self.stages)):
                yield f"depth {subnet.depth_text} is no part of {space.intact.depth_text}"

    def members(self, subnet: Subnet) -> list[int]:
        return spread_stages(subnet.depth, self.stages)

    def parameters(self, subnet: Subnet) -> int:
        total, before = self.channels * 49 * self.stem + 2 * self.stem, self.stem
        for stage, depth in enumerate(subnet.depth):
            inner, outer = subnet.width * 2**stage, self.outputs * 2**stage
            rest = 9 * inner**2 + inner * outer + 4 * inner + 2 * outer
            total += depth * rest + (before + (depth - 1) * outer) * inner
            total += before * outer + 2 * outer  # the shortcut of the first block
            before = outer
        return total

    def flops(self, subnet: Subnet, image_size: int) -> float:
        sides, before = map_sides(image_size, self.patch_size), self.stem
        total = (-(-image_size // 2)) ** 2 * self.channels * 49 * self.stem
        for stage, depth in enumerate(subnet.depth):
            inner, outer = subnet.width * 2**stage, self.outputs * 2**stage
            area, area_before = sides[stage] ** 2, sides[max(stage - 1, 0)] ** 2
            total += area_before * before * inner + area * before * outer
            total += area * (depth - 1) * outer * inner
            total += area * depth * (9 * inner**2 + inner * outer)
            before = outer
        return 2.0 * total

    def making(self) -> float:
        return 0.0

    def costs(self, space: ElasticSpace, image_size: int) -> tuple[float, ...]:
        return tuple(self.flops(subnet, image_size) for subnet in space.subnets())


def leaving(options: Backbone) -> int:
    """Channels that leave stage 1."""
    return options.outer or 2 * widest(options)


SHAPE = ResNetShape
