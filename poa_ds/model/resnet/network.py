"""The elastic ResNet: bottlenecks of which the inner channels and the number per stage vary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from poa_ds.model.backbone import ElasticBackbone, Streams, enlarge, pooled
from poa_ds.model.options import COLOURS, Backbone
from poa_ds.model.packing import Packing
from poa_ds.model.resnet.shape import ResNetShape
from poa_ds.model.space import ElasticSpace, Subnet
from poa_kernels.compiled import compilable
from poa_kernels.slices import alpha, leading


@dataclass(frozen=True)
class Widths:
    """Inner width of stage 1 of each size. groups: maps per size, one for each group of crops."""

    widths: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class ResNetPlan:
    """Inner width of this block for each stream, or None where the stream passes it by.

    groups: maps per stream, one for each group of crops.
    """

    inner: tuple[int | None, ...]
    groups: int


class ElasticConv(nn.Conv2d):
    """Convolution without bias of which the leading channels are used.

    x (n, in, h, w), out -> (n, out, h, w), as if x were scaled by
    (in_channels / in) ** input_scale.
    """

    input_scale = 1.0

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride, padding=size // 2, bias=False)

    def forward(self, x: Tensor, out: int) -> Tensor:
        weight, inputs = self.weight[:out, : x.shape[1]], x.shape[1]
        if inputs < self.in_channels:
            # smaller than the map
            weight = weight * alpha(self.in_channels, inputs, self.input_scale)
        return F.conv2d(x, weight, None, self.stride, self.padding)


class ElasticGroupNorm(nn.GroupNorm):
    """Group norm over the active channels, in as many groups as at full width."""

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        weight, bias = leading(self.weight, c), leading(self.bias, c)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)

    def rectified(self, x: Tensor) -> Tensor:
        """ReLU of it."""
        c = x.shape[1]
        weight, bias = leading(self.weight, c), leading(self.bias, c)
        return _rectified_norm(x, self.num_groups, weight, bias, self.eps)


@compilable
def _rectified_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.relu(F.group_norm(x, groups, weight, bias, eps))


@compilable
def _rectified_sum(x: Tensor, y: Tensor) -> Tensor:
    return F.relu(x + y)


class Bottleneck(nn.Module):
    """A block that all streams pass together; its maps are those of stream 0, then of stream 1.

    Input and output channels are fixed, the inner ones elastic. A stream that does not use the
    block leaves as new tensors (see layers.Block).
    """

    def __init__(
        self, inputs: int, inner: int, outputs: int, groups: int, *, stride: int, shortcut: bool
    ) -> None:
        super().__init__()
        self.conv1, self.norm1 = ElasticConv(inputs, inner, 1), ElasticGroupNorm(groups, inner)
        self.conv2 = ElasticConv(inner, inner, 3, stride=stride)
        self.norm2 = ElasticGroupNorm(groups, inner)
        self.conv3, self.norm3 = ElasticConv(inner, outputs, 1), ElasticGroupNorm(groups, outputs)
        # numbered names, as published: this norm's weight is decayed, other norms' are not
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(groups, outputs)
            )
            if shortcut
            else None
        )

    def forward(self, *maps: Tensor, plan: ResNetPlan) -> Streams:
        inner = [width for width in plan.inner for _ in range(plan.groups)]
        return tuple(
            x * 1 if width is None else self._one(x, width)
            for x, width in zip(maps, inner, strict=True)
        )

    def _one(self, x: Tensor, inner: int) -> Tensor:
        y = self.norm1.rectified(self.conv1(x, out=inner))
        y = self.norm2.rectified(self.conv2(y, out=inner))
        y = self.norm3(self.conv3(y, out=self.conv3.out_channels))
        return _rectified_sum(y, x if self.downsample is None else self.downsample(x))


class Stem(nn.Module):
    """Images -> maps of a quarter of their side, masked places replaced; no channel is elastic."""

    def __init__(self, inputs: int, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 7, 2, padding=3, bias=False)
        self.norm = nn.GroupNorm(groups, channels)
        self.mask_token = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, images: Tensor, masks: Tensor | None) -> Tensor:
        x = F.relu(self.norm(self.conv(images.to(self.conv.weight.dtype))))
        x = F.max_pool2d(x, 3, 2, padding=1)
        if masks is None:
            return x
        return torch.where(enlarge(masks, *x.shape[2:]).unsqueeze(1), self.mask_token, x)


class ElasticResNet(ElasticBackbone):
    """ResNets of several inner widths (of stage 1) and depths (per stage).

    The tokens are not normalised and as wide for every size; class feature = their mean; patch
    tokens: the last map enlarged to twice its side. No stochastic depth, as published.
    """

    kind = "resnet"
    copies = 2
    reads_stages = True

    def __init__(
        self,
        space: ElasticSpace,
        *,
        image_size: int,
        norm_groups: int = Backbone.norm_groups,
        stem: int | None = None,
        outer: int = 0,
        channels: int = COLOURS,
        activation_checkpointing: bool = False,
    ) -> None:
        shape = ResNetShape(
            widest=space.intact.width,
            stages=space.intact.stages,
            image_size=image_size,
            norm_groups=norm_groups,
            stem=stem or (outer or 2 * space.intact.width) // 4,
            outer=outer,
            channels=channels,
        )
        super().__init__(space, shape, activation_checkpointing=activation_checkpointing)
        groups, inputs = norm_groups, shape.stem
        self.embed = Stem(channels, inputs, groups)
        self.blocks = nn.ModuleList()
        for stage, depth in enumerate(shape.stages):
            inner, outputs = shape.widest * 2**stage, shape.outputs * 2**stage
            for block in range(depth):
                first = block == 0
                stride = 2 if stage and first else 1
                made = Bottleneck(inputs, inner, outputs, groups, stride=stride, shortcut=first)
                self.blocks.append(made)
                inputs = outputs
        # block -> its inner width / that of stage 1
        self.growth = [2**stage for stage, d in enumerate(shape.stages) for _ in range(d)]

    @classmethod
    def of(
        cls, options: Backbone, image_size: int, space: ElasticSpace, *, channels: int
    ) -> "ElasticResNet":
        return cls(
            space,
            image_size=image_size,
            norm_groups=options.norm_groups,
            outer=options.outer,
            channels=channels,
            activation_checkpointing=options.activation_checkpointing,
        )

    @property
    def decay_depth(self) -> int:
        return len(self.blocks) - 1  # no norm follows the last block: it has the full rate

    def enter(
        self, crops: Sequence[Tensor], subnets: Sequence[Subnet], masks: Sequence[Tensor | None]
    ) -> tuple[Streams, Widths]:
        stem = [self.embed(images, mask) for images, mask in zip(crops, masks, strict=True)]
        widths = tuple(subnet.width for subnet in subnets)
        return tuple(stem * len(subnets)), Widths(widths, len(crops))

    def plan(
        self, index: int, layout: Widths, chosen: tuple[bool, ...], drops: tuple[None, ...]
    ) -> ResNetPlan:
        inner = (width * self.growth[index] for width in layout.widths)
        used = (width if uses else None for width, uses in zip(inner, chosen, strict=True))
        return ResNetPlan(tuple(used), layout.groups)

    def leave(self, streams: Streams, layout: Widths) -> list[list[Tensor]]:
        tokens = [pooled(rearrange(x, "n c r k -> n r k c")) for x in streams]
        n = layout.groups
        return [tokens[i : i + n] for i in range(0, len(tokens), n)]

    def readout(self, images: Tensor, subnet: Subnet, drop_path: None = None) -> Tensor:
        """The means of the maps of stages 2 to 4, as POA fine-tunes."""
        return torch.cat(self.stage_means(images, subnet)[1:], dim=1)

    def stage_maps(self, images: Tensor, subnet: Subnet) -> list[Tensor]:
        streams, layout = self.enter((images,), (subnet,), (None,))
        maps: dict[int, Tensor] = {}  # by growth: of the last block of each stage
        for index in self.members(subnet):
            plan = self.plan(index, layout, (True,), (None,))
            streams = self._run(self.blocks[index], streams, plan)
            maps[self.growth[index]] = streams[0]
        return [maps[growth] for growth in (1, 2, 4, 8)]

    def readout_width(self, subnet: Subnet) -> int:
        return (2 + 4 + 8) * self.feature_width(subnet) // 8

    def draw_drop_path(self, *args: object) -> None:
        return None  # as published

    def packing(self, crops: Sequence[Tensor]) -> Packing:
        return Packing(
            tuple((len(images), (images.shape[-1] // self.patch_size) ** 2) for images in crops)
        )


NETWORK = ElasticResNet
