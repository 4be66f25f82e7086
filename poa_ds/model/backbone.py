"""What every elastic backbone is: blocks that all students pass together, and sizes as arguments.

Callers know this class alone; what differs between architectures is in vit.py, swin.py, resnet.py.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from poa_ds.model.layers import Packing
from poa_ds.model.options import Backbone
from poa_ds.model.shape import Shape
from poa_ds.model.space import ElasticSpace, Subnet

Streams = tuple[Tensor, ...]


class ElasticBackbone(nn.Module):
    """A family of networks in one set of weights (POA, section 3; docs/method.md 1-2).

    model(images, subnet, masks=None) runs one size. Training uses `streams`.
    blocks: all of the intact network, in order. Parameter names begin with `embed.` (the patch
    projection with `embed.patch.`), `blocks.<i>.` or `norm.`: layer-wise decay reads them.
    """

    kind: ClassVar[str]  # `backbone.name` of recipes
    blocks: nn.ModuleList

    def __init__(
        self, space: ElasticSpace, shape: Shape, *, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.space, self.shape, self.patch_size = space, shape, shape.patch_size
        self.activation_checkpointing = activation_checkpointing

    @classmethod
    def of(cls, options: Backbone, image_size: int, space: ElasticSpace) -> "ElasticBackbone":
        """The backbone that a recipe's options describe."""
        raise NotImplementedError  # each backbone's own

    @property
    def decay_depth(self) -> int:
        """The d of layer-wise decay: block k gets decay ** (d - k), `embed` decay ** (d + 1)."""
        return len(self.blocks)

    def leaf_modules(self) -> list[type[nn.Module]]:
        """The classes that ZeRO-3 gathers as a whole."""
        return [type(self.blocks[0])]

    def members(self, subnet: Subnet) -> list[int]:
        """Indices of the blocks of one size."""
        raise NotImplementedError  # each backbone's own

    def feature_width(self, subnet: Subnet) -> int:
        """Channels of the tokens of one size."""
        return self.shape.features(subnet)

    def forward(self, images: Tensor, subnet: Subnet, masks: Tensor | None = None) -> Tensor:
        """Tokens (B, 1 + N, feature_width), the class feature first.

        images (B, 3, S, S) with S a multiple of the patch size; masks (B, N) bool: patches that
        are replaced by the mask token.
        """
        return self.streams((images,), (subnet,), (masks,))[0][0]

    def streams(
        self,
        crops: Sequence[Tensor],
        subnets: Sequence[Subnet],
        masks: Sequence[Tensor | None],
        kept: Sequence[Any] | None = None,
    ) -> list[list[Tensor]]:
        """Tokens [subnet][crop group] of all these sizes on the same crops, in lockstep.

        crops: one (n, 3, S, S) per group, resolutions may differ; masks: one per group.
        kept: for each block, per stream what `draw_kept` drew.
        Several sizes: the first is the intact network, so that every block is entered.
        """
        raise NotImplementedError  # each backbone's own

    def _enter(self, block: nn.Module, streams: Streams, plan: object) -> Streams:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *streams, plan=plan, use_reentrant=False)
        return block(*streams, plan=plan)

    def draw_kept(
        self,
        packing: Packing,
        subnets: Sequence[Subnet],
        rate: float,
        generator: torch.Generator,
        device: torch.device | str,
    ) -> list[Any] | None:
        """Stochastic depth for `streams`: what each block keeps of each stream; None: all."""
        return None

    def packing(self, crops: Sequence[Tensor]) -> Packing:
        """How many tokens the blocks see of each group of crops."""
        raise NotImplementedError  # each backbone's own

    def parameter_count(self, subnet: Subnet) -> int:
        """Parameters of one size as a network of its own (without the mask token)."""
        return self.shape.parameters(subnet)

    def flops(self, subnet: Subnet, image_size: int) -> float:
        """Multiply-adds of one forward pass of one image, times two."""
        return self.shape.flops(subnet, image_size)


def pooled(maps: Tensor) -> Tensor:
    """Final maps (n, rows, columns, C) -> (n, 1 + 4 x rows x columns, C).

    First the mean token, then the map enlarged to twice its side: the grid of the masks.
    """
    large = maps.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return torch.cat((maps.mean(dim=(1, 2)).unsqueeze(1), large.flatten(1, 2)), dim=1)


def enlarge(masks: Tensor, rows: int, columns: int) -> Tensor:
    """Masks (n, N) of a square grid -> (n, rows, columns) of the map that they hide."""
    side = round(masks.shape[1] ** 0.5)
    assert side * side == masks.shape[1] and rows % side == columns % side == 0, masks.shape
    grid = masks.unflatten(1, (side, side))
    return grid.repeat_interleave(rows // side, 1).repeat_interleave(columns // side, 2)
