"""The elastic bag of patches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.model.backbone import ElasticBackbone, Streams
from poa_ds.model.layers import ElasticLayerNorm, ElasticLinear
from poa_ds.model.options import Backbone
from poa_ds.model.packing import Packing
from poa_ds.model.space import ElasticSpace, Subnet
from tests.toys.bag.shape import BagShape


@dataclass(frozen=True)
class Plan:
    """Whether each stream uses this block."""

    chosen: tuple[bool, ...]


class Block(nn.Module):
    """x + gelu(linear(norm(x))) of all streams together; who does not use it passes as x * 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.fc = ElasticLayerNorm(dim, 1e-6), ElasticLinear(dim, dim)

    def forward(self, *streams: Tensor, plan: Plan) -> tuple[Tensor, ...]:
        mine = [x for x, chosen in zip(streams, plan.chosen, strict=True) if chosen]
        made = iter(self.fc(*map(self.norm, mine), outs=[x.shape[1] for x in mine]))
        return tuple(
            x + F.gelu(next(made)) if chosen else x * 1
            for x, chosen in zip(streams, plan.chosen, strict=True)
        )


class Embed(nn.Module):
    def __init__(self, dim: int, patch_size: int, channels: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))

    def forward(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """(B, N, C)."""
        x = self.patch(images.to(self.patch.weight.dtype)).flatten(2).transpose(1, 2)
        return x if masks is None else torch.where(masks.unsqueeze(-1), self.mask_token, x)


class ElasticBag(ElasticBackbone):
    """Patches that never meet, until the class feature, their mean."""

    kind = "bag"

    @classmethod
    def of(
        cls, options: Backbone, image_size: int, space: ElasticSpace, *, channels: int
    ) -> "ElasticBag":
        made = cls(space, BagShape.of(options, image_size, channels=channels))
        dim = options.width.max
        made.embed = Embed(dim, options.patch_size, channels)
        made.blocks = nn.ModuleList(Block(dim) for _ in range(options.depth.max))
        made.norm = ElasticLayerNorm(dim, 1e-6)
        return made

    def enter(
        self, crops: Sequence[Tensor], subnets: Sequence[Subnet], masks: Sequence[Tensor | None]
    ) -> tuple[Streams, Packing]:
        patches = [self.embed(images, mask) for images, mask in zip(crops, masks, strict=True)]
        rows = torch.cat([x.flatten(0, 1) for x in patches])
        packing = Packing(tuple(tuple(x.shape[:2]) for x in patches))
        return tuple(rows[:, : subnet.width] for subnet in subnets), packing

    def plan(
        self, index: int, layout: Packing, chosen: tuple[bool, ...], drops: tuple[None, ...]
    ) -> Plan:
        return Plan(chosen)

    def leave(self, streams: Streams, layout: Packing) -> list[list[Tensor]]:
        return [[with_mean(x) for x in layout.split(self.norm(rows))] for rows in streams]

    def packing(self, crops: Sequence[Tensor]) -> Packing:
        sides = (x.shape[-1] // self.patch_size for x in crops)
        return Packing(tuple((len(x), side**2) for x, side in zip(crops, sides, strict=True)))


def with_mean(patches: Tensor) -> Tensor:
    """(B, N, C) -> (B, 1 + N, C), the mean first."""
    return torch.cat((patches.mean(1, keepdim=True), patches), dim=1)


NETWORK = ElasticBag
