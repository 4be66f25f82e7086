"""What each architecture amounts to in numbers alone: its sizes, parameters, operations, mask grid.

No torch here: recipes are checked, and balanced draws planned, before anything heavy is loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Protocol

from poa_ds.model.space import Depth, ElasticSpace, Subnet, spread
from poa_ds.recipe.tree import Backbone, Range, Recipe

Stages = tuple[int, ...]


class Shape(Protocol):
    """One architecture. patch_size: what images must be a multiple of; `of` reads a recipe."""

    patch_size: int

    @classmethod
    def of(cls, options: Backbone, image_size: int) -> "Shape": ...

    @staticmethod
    def axes(options: Backbone) -> tuple[tuple[Depth, ...], float]:
        """(the depths, smallest first; how much more often the narrowest is drawn)."""

    @staticmethod
    def problems(options: Backbone) -> Iterator[str]:
        """What is wrong with the recipe's sizes, in words."""

    def features(self, subnet: Subnet) -> int:
        """Width of the tokens that leave the backbone."""

    def grid(self, image_size: int) -> int:
        """Rows of the map of patch tokens that leaves the backbone: the masks' grid too."""

    def multiple(self) -> tuple[int, str]:
        """(what crops.global_size must be a multiple of, its name)."""

    def parameters(self, subnet: Subnet) -> int:
        """Parameters of one size as a network of its own (without the mask token)."""

    def flops(self, subnet: Subnet, image_size: int) -> float:
        """Multiply-adds of one forward pass of one image, times two."""

    def costs(self, space: ElasticSpace, image_size: int) -> tuple[float, ...]:
        """Work of each of `space.subnets()`, or () where width^2 x depth tells it well enough."""


def values(numbers: Range) -> tuple[int, ...]:
    """min, min + step, ..., max."""
    return tuple(range(numbers.min, numbers.max + 1, numbers.step))


def _heads_divide(options: Backbone) -> Iterator[str]:
    wrong = [width for width in values(options.width) if width % options.head_dim]
    if wrong:
        yield (
            f"backbone.width {wrong[0]} is not a multiple of backbone.head_dim {options.head_dim}:"
            " width.min and width.step must be"
        )


def _stages_are_right(options: Backbone, elastic: tuple[int, ...]) -> Iterator[str]:
    if options.depth != Backbone().depth:
        yield f"backbone.depth is vit's: {options.name} has backbone.stages, [least, most] blocks"
    if len(options.stages) != 4:
        yield f"backbone.stages has {len(options.stages)} stages: {options.name} has 4"
    for i, (least, most) in enumerate(options.stages):
        if least > most:
            yield f"backbone.stages[{i}] is [{least}, {most}]: the first must not exceed the second"
        if least != most and i not in elastic:
            yield f"backbone.stages[{i}] is [{least}, {most}]: {options.name} keeps this one fixed"


@dataclass(frozen=True)
class VitShape:
    """Vision transformer: width channels, depth blocks."""

    widest: int
    deepest: int
    image_size: int
    patch_size: int
    mlp_ratio: int

    @classmethod
    def of(cls, options: Backbone, image_size: int) -> "VitShape":
        widest, deepest = options.width.max, options.depth.max
        return cls(widest, deepest, image_size, options.patch_size, options.mlp_ratio)

    @staticmethod
    def axes(options: Backbone) -> tuple[tuple[Depth, ...], float]:
        return values(options.depth), options.small_bias

    @staticmethod
    def problems(options: Backbone) -> Iterator[str]:
        yield from _heads_divide(options)
        if options.stages != Backbone().stages:
            yield "backbone.stages belongs to swin and resnet: vit has backbone.depth"

    def features(self, subnet: Subnet) -> int:
        return subnet.width

    def grid(self, image_size: int) -> int:
        return image_size // self.patch_size

    def multiple(self) -> tuple[int, str]:
        return self.patch_size, f"backbone.patch_size {self.patch_size}"

    def parameters(self, subnet: Subnet) -> int:
        c, hidden = subnet.width, self.mlp_ratio * subnet.width
        per_block = 4 * c * c + 2 * c * hidden + hidden + 5 * c + 4 * c + 2 * c
        embed = c * (3 * self.patch_size**2 + 1) + c * (2 + self.grid(self.image_size) ** 2)
        return embed + subnet.depth * per_block + 2 * c

    def flops(self, subnet: Subnet, image_size: int) -> float:
        tokens = 1 + self.grid(image_size) ** 2
        c = subnet.width
        linear = (4 + 2 * self.mlp_ratio) * c * c * tokens
        attention = 2 * tokens * tokens * c
        patches = (tokens - 1) * c * 3 * self.patch_size**2
        return 2.0 * (subnet.depth * (linear + attention) + patches)

    def costs(self, space: ElasticSpace, image_size: int) -> tuple[float, ...]:
        return ()


def map_sides(image_size: int, patch: int) -> list[int]:
    """Side of the map in each of four stages: halved, rounded up."""
    first = -(-image_size // patch)
    return [-(-first // 2**i) for i in range(4)]


@dataclass(frozen=True)
class SwinShape:
    """Swin: width channels in stage 1, doubling; depth = blocks of stage 3 (REFERENCE.md 2)."""

    widest: int
    stages: Stages
    patch_size: int
    head_dim: int
    window: int
    mlp_ratio: int

    elastic: ClassVar[int] = 2  # the stage whose depth varies

    @classmethod
    def of(cls, options: Backbone, image_size: int) -> "SwinShape":
        stages = tuple(most for _, most in options.stages)
        numbers = options.patch_size, options.head_dim, options.window, options.mlp_ratio
        return cls(options.width.max, stages, *numbers)

    @staticmethod
    def axes(options: Backbone) -> tuple[tuple[Depth, ...], float]:
        least, most = options.stages[SwinShape.elastic]
        return tuple(range(least, most + 1)), options.small_bias

    @staticmethod
    def problems(options: Backbone) -> Iterator[str]:
        yield from _heads_divide(options)
        yield from _stages_are_right(options, (SwinShape.elastic,))

    def features(self, subnet: Subnet) -> int:
        return 8 * subnet.width

    def grid(self, image_size: int) -> int:
        return 2 * map_sides(image_size, self.patch_size)[-1]

    def multiple(self) -> tuple[int, str]:
        return 8 * self.patch_size, f"8 x backbone.patch_size {self.patch_size} (four stages)"

    def depths(self, subnet: Subnet) -> Stages:
        """Blocks of each stage of one size."""
        return (*self.stages[: self.elastic], subnet.depth, *self.stages[self.elastic + 1 :])

    def members(self, subnet: Subnet) -> list[int]:
        """The physical blocks of one size, counted through the stages."""
        return spread_stages(self.depths(subnet), self.stages)

    def parameters(self, subnet: Subnet) -> int:
        table = (2 * self.window - 1) ** 2
        # the norm after the patch projection works on all channels, so all are projected
        total = self.widest * (3 * self.patch_size**2 + 1) + 2 * subnet.width
        for stage, depth in enumerate(self.depths(subnet)):
            c = subnet.width * 2**stage
            hidden = self.mlp_ratio * c
            per_block = 4 * c * c + 2 * c * hidden + hidden + 9 * c + table * c // self.head_dim
            merge = 2 * c * c + 4 * c if stage else 0  # from 4 x c / 2 channels
            total += depth * per_block + merge
        return total + 2 * self.features(subnet)

    def flops(self, subnet: Subnet, image_size: int) -> float:
        sides = map_sides(image_size, self.patch_size)
        total = sides[0] ** 2 * self.widest * 3 * self.patch_size**2
        for stage, (depth, side) in enumerate(zip(self.depths(subnet), sides, strict=True)):
            c, padded = subnet.width * 2**stage, -(-side // self.window) * self.window
            linear = (4 + 2 * self.mlp_ratio) * c * c * side**2
            attention = 2 * padded**2 * self.window**2 * c
            merge = 2 * c * c * side**2 if stage else 0
            total += depth * (linear + attention) + merge
        return 2.0 * total

    def costs(self, space: ElasticSpace, image_size: int) -> tuple[float, ...]:
        return tuple(self.flops(subnet, image_size) for subnet in space.subnets())


@dataclass(frozen=True)
class ResNetShape:
    """ResNet of bottlenecks; width = inner channels of stage 1, doubling; depth: per stage.

    Blocks receive and return twice the widest inner width, whatever the size (REFERENCE.md 2).
    """

    widest: int
    stages: Stages
    norm_groups: int
    stem: int
    patch_size: int = 4  # stride of stem and pooling

    @classmethod
    def of(cls, options: Backbone, image_size: int) -> "ResNetShape":
        stages = tuple(most for _, most in options.stages)
        return cls(options.width.max, stages, options.norm_groups, options.width.max // 2)

    @staticmethod
    def axes(options: Backbone) -> tuple[tuple[Depth, ...], float]:
        ranges = (range(least, most + 1) for least, most in options.stages)
        return tuple(sorted(product(*ranges), key=sum)), 1.0

    @staticmethod
    def problems(options: Backbone) -> Iterator[str]:
        yield from _stages_are_right(options, (0, 1, 2, 3))
        if options.patch_size != ResNetShape.patch_size:
            yield f"backbone.patch_size {options.patch_size}: resnet's stem reduces by 4, write 4"
        for width in (*values(options.width), options.width.max // 2):
            if width % options.norm_groups:
                yield (
                    f"backbone.width: {width} channels do not divide into backbone.norm_groups"
                    f" {options.norm_groups} (the stem has half of width.max)"
                )
                return

    def features(self, subnet: Subnet) -> int:
        return 16 * self.widest

    def grid(self, image_size: int) -> int:
        return 2 * map_sides(image_size, self.patch_size)[-1]

    def multiple(self) -> tuple[int, str]:
        return 32, "32, the stride of resnet"

    def members(self, subnet: Subnet) -> list[int]:
        """The physical blocks of one size, counted through the stages."""
        return spread_stages(subnet.depth, self.stages)

    def parameters(self, subnet: Subnet) -> int:
        total, before = 3 * 49 * self.stem + 2 * self.stem, self.stem
        for stage, depth in enumerate(subnet.depth):
            inner, outer = subnet.width * 2**stage, 2 * self.widest * 2**stage
            rest = 9 * inner**2 + inner * outer + 4 * inner + 2 * outer
            total += depth * rest + (before + (depth - 1) * outer) * inner
            total += before * outer + 2 * outer  # the shortcut of the first block
            before = outer
        return total

    def flops(self, subnet: Subnet, image_size: int) -> float:
        sides, before = map_sides(image_size, self.patch_size), self.stem
        total = (-(-image_size // 2)) ** 2 * 3 * 49 * self.stem
        for stage, depth in enumerate(subnet.depth):
            inner, outer = subnet.width * 2**stage, 2 * self.widest * 2**stage
            area, area_before = sides[stage] ** 2, sides[max(stage - 1, 0)] ** 2
            total += area_before * before * inner + area * before * outer
            total += area * (depth - 1) * outer * inner
            total += area * depth * (9 * inner**2 + inner * outer)
            before = outer
        return 2.0 * total

    def costs(self, space: ElasticSpace, image_size: int) -> tuple[float, ...]:
        return tuple(self.flops(subnet, image_size) for subnet in space.subnets())


def spread_stages(depths: Stages, stages: Stages) -> list[int]:
    """The kept blocks of every stage, in one count through all physical blocks."""
    kept, first = [], 0
    for depth, physical in zip(depths, stages, strict=True):
        kept += [first + block for block in spread(depth, physical)]
        first += physical
    return kept


SHAPES: dict[str, type[Shape]] = {"vit": VitShape, "swin": SwinShape, "resnet": ResNetShape}


def shape(recipe: Recipe) -> Shape:
    """The numbers of the recipe's backbone."""
    return SHAPES[recipe.backbone.name].of(recipe.backbone, recipe.crops.global_size)


def bare_space(recipe: Recipe) -> ElasticSpace:
    """The recipe's sizes without their names."""
    options = recipe.backbone
    depths, width_bias = SHAPES[options.name].axes(options)
    return ElasticSpace(values(options.width), depths, options.small_bias, width_bias=width_bias)


def costed_space(recipe: Recipe, names: dict[str, Subnet]) -> ElasticSpace:
    """The recipe's sizes with names and the work of each."""
    bare, options = bare_space(recipe), recipe.backbone
    costs = shape(recipe).costs(bare, recipe.crops.global_size)
    return ElasticSpace(
        bare.widths, bare.depths, options.small_bias, names, width_bias=bare.width_bias, costs=costs
    )
