"""What a vision transformer amounts to in numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from poa_ds.model.options import COLOURS, Backbone, Positions, QkvBias, Range
from poa_ds.model.shape import gated_units, heads_divide, no_template, undivided, values, widest
from poa_ds.model.space import Depth, ElasticSpace, Subnet, spread


@dataclass(frozen=True, kw_only=True)
class VitShape:
    """Vision transformer: width channels, depth blocks."""

    widest: int
    deepest: int
    image_size: int
    patch_size: int
    head_dim: int
    mlp_ratio: int
    layer_scale: float
    registers: int = 0
    norm_eps: float = 1e-6
    swiglu: int = 0
    positions: Positions = "learned"
    qkv_bias: QkvBias = "full"
    channels: int = COLOURS

    @classmethod
    def of(cls, options: Backbone, image_size: int, *, channels: int) -> "VitShape":
        return cls(
            widest=widest(options),
            deepest=options.depth.max,
            image_size=image_size,
            patch_size=options.patch_size,
            head_dim=options.head_dim,
            mlp_ratio=options.mlp_ratio,
            layer_scale=options.layer_scale,
            registers=options.registers,
            norm_eps=options.norm_eps,
            swiglu=options.swiglu,
            positions=options.positions,
            qkv_bias=options.qkv_bias,
            channels=channels,
        )

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
        yield from (*heads_divide(options), *no_template(options))
        if options.stages != Backbone().stages:
            yield "backbone.stages belongs to swin and resnet: vit has backbone.depth"

    def features(self, subnet: Subnet) -> int:
        return subnet.width

    def contradictions(self, space: ElasticSpace) -> Iterator[str]:
        yield from undivided(space.widths, self.head_dim, "head_dim")
        if self.positions == "rope" and self.head_dim % 4:
            yield f"rotary positions need a head_dim in fours, not {self.head_dim}"
        if self.image_size % self.patch_size:
            yield f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"

    def members(self, subnet: Subnet) -> list[int]:
        return spread(subnet.depth, self.deepest)

    def grid(self, image_size: int) -> int:
        return image_size // self.patch_size

    def multiple(self) -> tuple[int, str]:
        return self.patch_size, f"backbone.patch_size {self.patch_size}"

    def hidden(self, width: int) -> tuple[int, int]:
        """Of a size's MLP: channels that leave its first layer, and that enter the second."""
        if self.swiglu:
            units = gated_units(self.swiglu, self.widest, width)
            return 2 * units, units
        return self.mlp_ratio * width, self.mlp_ratio * width

    def parameters(self, subnet: Subnet) -> int:
        c, (first, second) = subnet.width, self.hidden(subnet.width)
        biases = {"full": 3, "no_key": 2, "none": 0}[self.qkv_bias] * c + 2 * c + first
        per_block = 4 * c * c + c * (first + second) + biases + 4 * c + 2 * c
        tokens = 1 + self.registers
        if self.positions == "learned":
            tokens += 1 + self.grid(self.image_size) ** 2
        embed = c * (self.channels * self.patch_size**2 + 1) + c * tokens
        return embed + subnet.depth * per_block + 2 * c

    def flops(self, subnet: Subnet, image_size: int) -> float:
        seen = self.grid(image_size) ** 2
        tokens, c = 1 + self.registers + seen, subnet.width
        linear = (4 * c + sum(self.hidden(c))) * c * tokens
        attention = 2 * tokens * tokens * c
        patches = seen * c * self.channels * self.patch_size**2
        return 2.0 * (subnet.depth * (linear + attention) + patches)

    def making(self) -> float:
        return 0.0

    def costs(self, space: ElasticSpace, image_size: int) -> tuple[float, ...]:
        return ()


SHAPE = VitShape
