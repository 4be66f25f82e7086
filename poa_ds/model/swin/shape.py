"""What a Swin transformer amounts to in numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from poa_ds.model.options import COLOURS, Backbone
from poa_ds.model.shape import (
    Stages,
    heads_divide,
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
from poa_ds.model.space import Depth, ElasticSpace, Subnet, spread


@dataclass(frozen=True, kw_only=True)
class SwinShape:
    """Swin: width channels in stage 1, doubling; depth = blocks of stage 3 (docs/method.md 2)."""

    widest: int
    stages: Stages
    image_size: int
    patch_size: int
    head_dim: int
    window: int
    mlp_ratio: int
    channels: int = COLOURS
    projected: int = 0  # channels that patches are projected to; 0: `widest`
    shifted: tuple[bool, ...] = ()  # of each block of the elastic stage; (): of every second

    elastic: ClassVar[int] = 2  # the stage whose depth varies

    @classmethod
    def of(cls, options: Backbone, image_size: int, *, channels: int) -> "SwinShape":
        return cls(
            widest=widest(options),
            stages=tuple(most for _, most in options.stages),
            image_size=image_size,
            patch_size=options.patch_size,
            head_dim=options.head_dim,
            window=options.window,
            mlp_ratio=options.mlp_ratio,
            channels=channels,
            projected=options.projected,
            shifted=options.shifted,
        )

    @staticmethod
    def axes(options: Backbone) -> tuple[tuple[Depth, ...], float]:
        least, most = options.stages[SwinShape.elastic]
        return tuple(range(least, most + 1)), options.small_bias

    @staticmethod
    def of_depth(options: Backbone, depth: Depth) -> Backbone:
        stages = list(options.stages)
        stages[SwinShape.elastic] = (depth, depth)
        return replace(options, stages=tuple(stages), shifted=())

    @staticmethod
    def taken_out(options: Backbone, alone: Backbone) -> Backbone:
        """With the norm of all projected channels, and each block's windows shifted as there."""
        normed, [width] = options.projected or widest(options), widths(alone)
        (_, most), (_, depth) = (one.stages[SwinShape.elastic] for one in (options, alone))
        there = options.shifted or every_second(most)
        kept = tuple(there[block] for block in spread(depth, most))
        return replace(
            alone,
            projected=normed if normed != width else 0,
            shifted=kept if kept != every_second(depth) else (),
        )

    @staticmethod
    def problems(options: Backbone) -> Iterator[str]:
        yield from (*heads_divide(options), *no_template(options), *no_vit_parts(options))
        yield from no_residual(options)
        yield from stages_are_right(options, (SwinShape.elastic,))
        if 0 < options.projected < widest(options):
            yield f"backbone.projected {options.projected}: the widest size has {widest(options)}"
        most = options.stages[SwinShape.elastic][1] if len(options.stages) == 4 else 0
        if options.shifted and most and len(options.shifted) != most:
            yield f"backbone.shifted says it of {len(options.shifted)} blocks: stage 3 has {most}"

    @property
    def normed(self) -> int:
        """Channels over which patches are normalised, before the first of them go on."""
        return self.projected or self.widest

    def shifts(self, stage: int) -> tuple[bool, ...]:
        """Of each physical block of a stage, whether its windows are shifted."""
        own = self.shifted if stage == self.elastic else ()
        return own or every_second(self.stages[stage])

    def features(self, subnet: Subnet) -> int:
        return 8 * subnet.width

    def grid(self, image_size: int) -> int:
        return 2 * map_sides(image_size, self.patch_size)[-1]

    def multiple(self) -> tuple[int, str]:
        return 8 * self.patch_size, f"8 x backbone.patch_size {self.patch_size} (four stages)"

    def depths(self, subnet: Subnet) -> Stages:
        """Blocks of each stage of one size."""
        return (*self.stages[: self.elastic], subnet.depth, *self.stages[self.elastic + 1 :])

    def contradictions(self, space: ElasticSpace) -> Iterator[str]:
        yield from undivided(space.widths, self.head_dim, "head_dim")
        deepest = space.intact.depth
        if len(self.stages) != 4 or self.stages[self.elastic] != deepest:
            yield f"stages {self.stages}: the third of four must be the largest depth, {deepest}"

    def members(self, subnet: Subnet) -> list[int]:
        return spread_stages(self.depths(subnet), self.stages)

    def parameters(self, subnet: Subnet) -> int:
        table = (2 * self.window - 1) ** 2
        # the norm after the patch projection works on all channels, so all are projected
        total = self.normed * (self.channels * self.patch_size**2 + 1) + 2 * subnet.width
        for stage, depth in enumerate(self.depths(subnet)):
            c = subnet.width * 2**stage
            hidden = self.mlp_ratio * c
            per_block = 4 * c * c + 2 * c * hidden + hidden + 9 * c + table * c // self.head_dim
            merge = 2 * c * c + 4 * c if stage else 0  # from 4 x c / 2 channels
            total += depth * per_block + merge
        return total + 2 * self.features(subnet)

    def flops(self, subnet: Subnet, image_size: int) -> float:
        sides = map_sides(image_size, self.patch_size)
        total = sides[0] ** 2 * self.normed * self.channels * self.patch_size**2
        for stage, (depth, side) in enumerate(zip(self.depths(subnet), sides, strict=True)):
            c, padded = subnet.width * 2**stage, -(-side // self.window) * self.window
            linear = (4 + 2 * self.mlp_ratio) * c * c * side**2
            attention = 2 * padded**2 * self.window**2 * c
            merge = 2 * c * c * side**2 if stage else 0
            total += depth * (linear + attention) + merge
        return 2.0 * total

    def making(self) -> float:
        return 0.0

    def costs(self, space: ElasticSpace, image_size: int) -> tuple[float, ...]:
        return tuple(self.flops(subnet, image_size) for subnet in space.subnets())


def every_second(blocks: int) -> tuple[bool, ...]:
    """Which of them shift their windows, as published."""
    return tuple(block % 2 == 1 for block in range(blocks))


SHAPE = SwinShape
