"""What each architecture amounts to in numbers alone: its sizes, parameters, operations, mask grid.

No torch here: recipes are checked, and balanced draws planned, before anything heavy is loaded.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from poa_ds.model import architectures
from poa_ds.model.options import Backbone, Range, Template
from poa_ds.model.space import Depth, ElasticSpace, Subnet, spread

Stages = tuple[int, ...]


class Shape(Protocol):
    """One architecture. Images, of image_size in training, must be a multiple of patch_size."""

    image_size: int
    patch_size: int
    channels: int  # of the images

    @classmethod
    def of(cls, options: Backbone, image_size: int, *, channels: int) -> "Shape": ...

    @staticmethod
    def axes(options: Backbone) -> tuple[tuple[Depth, ...], float]:
        """(the depths, smallest first; how much more often the narrowest is drawn)."""

    @staticmethod
    def of_depth(options: Backbone, depth: Depth) -> Backbone:
        """The options with that depth alone."""

    @staticmethod
    def taken_out(options: Backbone, alone: Backbone) -> Backbone:
        """`alone`, of one size, with what that size keeps of the network it is taken out of."""

    @staticmethod
    def problems(options: Backbone) -> Iterator[str]:
        """What is wrong with the recipe's sizes, in words."""

    def features(self, subnet: Subnet) -> int:
        """Width of the tokens that leave the backbone."""

    def contradictions(self, space: ElasticSpace) -> Iterator[str]:
        """Why there is no such network with the sizes of this space, in words."""

    def members(self, subnet: Subnet) -> list[int]:
        """The physical blocks of one size, in one count through all of them."""

    def grid(self, image_size: int) -> int:
        """Rows of the map of patch tokens that leaves the backbone: the masks' grid too."""

    def multiple(self) -> tuple[int, str]:
        """(what crops.global_size must be a multiple of, its name)."""

    def parameters(self, subnet: Subnet) -> int:
        """Parameters of one size as a network of its own (without the mask token)."""

    def flops(self, subnet: Subnet, image_size: int) -> float:
        """Multiply-adds of one forward pass of one image, times two."""

    def making(self) -> float:
        """Operations of each pass beside those of its images: matrices that it makes."""

    def costs(self, space: ElasticSpace, image_size: int) -> tuple[float, ...]:
        """Work of each of `space.subnets()`, or () where width^2 x depth tells it well enough."""


def of(options: Backbone, image_size: int, *, channels: int) -> Shape:
    """The numbers of the backbone that the options describe. channels: of the images."""
    return kind(options).of(options, image_size, channels=channels)


def one_size(options: Backbone, subnet: Subnet) -> Backbone:
    """The options of a backbone that has this size alone."""
    found = kind(options).of_depth(options, subnet.depth)
    width = Range(subnet.width, subnet.width, options.width.step)
    units = gated_units(options.swiglu, widest(options), subnet.width)
    return replace(found, width=width, widths=(), swiglu=units, norms="shared")


def taken_out(options: Backbone, subnet: Subnet) -> Backbone:
    """The options of the network that a size is when it is taken out of the others.

    As `one_size`, but for what it keeps of them.
    """
    return kind(options).taken_out(options, one_size(options, subnet))


def kind(options: Backbone) -> type[Shape]:
    """The class of its numbers."""
    return architectures.part(options.name, "shape").SHAPE


def values(numbers: Range) -> tuple[int, ...]:
    """min, min + step, ..., max."""
    return tuple(range(numbers.min, numbers.max + 1, numbers.step))


def widths(options: Backbone) -> tuple[int, ...]:
    """The widths of the sizes, in ascending order."""
    return tuple(sorted(set(options.widths))) or values(options.width)


def widest(options: Backbone) -> int:
    """The width of the intact network, whatever is wrong with the others."""
    return max(options.widths, default=options.width.max)


def heads_divide(options: Backbone) -> Iterator[str]:
    wrong = [width for width in widths(options) if width % options.head_dim]
    if wrong:
        yield (
            f"backbone.width {wrong[0]} is not a multiple of backbone.head_dim {options.head_dim}:"
            " width.min and width.step must be, or all of widths"
        )


def vit_parts(options: Backbone) -> list[str]:
    """The keys of parts that only a ViT has, where they are not as in the published recipes."""
    standard, keys = Backbone(), "registers norm_eps norms swiglu positions qkv_bias".split()
    return [key for key in keys if getattr(options, key) != getattr(standard, key)]


def no_vit_parts(options: Backbone) -> Iterator[str]:
    for key in vit_parts(options):
        yield f"backbone.{key} is vit's: {options.name} takes no other, remove it"


def gated_units(whole: int, widest: int, width: int) -> int:
    """Units of the gated MLP of a slice: in proportion, rounded up to eights where it is none."""
    units, rest = divmod(whole * width, widest)
    return min(-(-whole * width // (8 * widest)) * 8, whole) if rest else units


def no_residual(options: Backbone) -> Iterator[str]:
    if options.residual != Backbone.residual:
        yield f"backbone.residual is of vit and tucker: {options.name} has no such sum, remove it"


def no_template(options: Backbone) -> Iterator[str]:
    if options.template != Template():
        yield f"backbone.template is tucker's: {options.name} owns its matrices, remove it"


def stages_are_right(options: Backbone, elastic: tuple[int, ...]) -> Iterator[str]:
    if options.depth != Backbone().depth:
        yield f"backbone.depth is vit's: {options.name} has backbone.stages, [least, most] blocks"
    if len(options.stages) != 4:
        yield f"backbone.stages has {len(options.stages)} stages: {options.name} has 4"
    for i, (least, most) in enumerate(options.stages):
        if least > most:
            yield f"backbone.stages[{i}] is [{least}, {most}]: the first must not exceed the second"
        if least != most and i not in elastic:
            yield f"backbone.stages[{i}] is [{least}, {most}]: {options.name} keeps this one fixed"


def undivided(widths: Iterable[int], by: int, name: str) -> Iterator[str]:
    """The first width that does not divide, in words."""
    yield from (f"width {width} is not a multiple of {name} {by}" for width in widths if width % by)


def map_sides(image_size: int, patch: int) -> list[int]:
    """Side of the map in each of four stages: halved, rounded up."""
    first = -(-image_size // patch)
    return [-(-first // 2**i) for i in range(4)]


def spread_stages(depths: Stages, stages: Stages) -> list[int]:
    """The kept blocks of every stage, in one count through all physical blocks."""
    kept, first = [], 0
    for depth, physical in zip(depths, stages, strict=True):
        kept += [first + block for block in spread(depth, physical)]
        first += physical
    return kept
