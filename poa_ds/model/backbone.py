"""What every elastic backbone is: blocks that all students pass together, and sizes as arguments.

Callers know this class alone; what differs between architectures is in a package of each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import reduce, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from poa_ds.model.options import Backbone
from poa_ds.model.packing import Packing
from poa_ds.model.shape import Shape
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.system.errors import UserError

Streams = tuple[Tensor, ...]


@dataclass(frozen=True)
class DropPath:
    """Stochastic depth of one pass, drawn before it (`ElasticBackbone.draw_drop_path`).

    drops: for each block, per stream (attention branch, MLP branch), None where the stream passes
    the block by. What a branch's drop is, the blocks of its backbone know alone.
    """

    drops: tuple[tuple[tuple[Any, Any] | None, ...], ...]

    def of_block(self, index: int) -> tuple[tuple[Any, Any] | None, ...]:
        """What the block drops of each stream."""
        return self.drops[index]


class ElasticBackbone(nn.Module):
    """A family of networks in one set of weights (POA, section 3; docs/method.md 1-2).

    model(images, subnet, masks=None) runs one size. Training uses `streams`, which is written here
    once: an architecture says how crops enter the blocks (`enter`), what a block must know (`plan`)
    and how tokens leave (`leave`). A layout is its own: how the rows of streams are cut.

    blocks: all of the intact network, in order. Parameter names begin with `embed.` (the patch
    projection with `embed.patch.`), `blocks.<i>.` or `norm.`: layer-wise decay reads them.
    """

    kind: ClassVar[str]  # its name in the table and in recipes
    input_scale = 1.0  # its layers' (`layers.scale_inputs`)
    other_sizes: ClassVar[str] = ""  # where to get a size that is not in the space, in words
    copies: ClassVar[int] = 1  # patch tokens on a side that stand for one place of the last map
    reads_blocks: ClassVar[bool] = False  # whether tokens may be read out behind any block (`taps`)
    reads_stages: ClassVar[bool] = False  # whether it has stages (`stage_maps`)
    blocks: nn.ModuleList

    def __init__(
        self, space: ElasticSpace, shape: Shape, *, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        if wrong := next(shape.contradictions(space), None):
            raise ValueError(f"{type(self).__name__} with {space.describe()}: {wrong}")
        self.space, self.shape, self.patch_size = space, shape, shape.patch_size
        self.activation_checkpointing = activation_checkpointing

    @classmethod
    def of(
        cls, options: Backbone, image_size: int, space: ElasticSpace, *, channels: int
    ) -> "ElasticBackbone":
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
        """Indices of the blocks of one size. ValueError: it is not in the space."""
        return self.shape.members(self.space.require(subnet))

    def feature_width(self, subnet: Subnet) -> int:
        """Channels of the tokens of one size."""
        return self.shape.features(self.space.require(subnet))

    def forward(self, images: Tensor, subnet: Subnet, masks: Tensor | None = None) -> Tensor:
        """Tokens (B, 1 + N, feature_width), the class feature first.

        images (B, channels, S, S) with S a multiple of the patch size; masks (B, N) bool: patches
        that are replaced by the mask token.
        """
        return self.streams((images,), (subnet,), (masks,))[0][0]

    def streams(
        self,
        crops: Sequence[Tensor],
        subnets: Sequence[Subnet],
        masks: Sequence[Tensor | None],
        drop_path: DropPath | None = None,
    ) -> list[list[Tensor]]:
        """Tokens [subnet][crop group] of all these sizes on the same crops, in lockstep.

        crops: one (n, channels, S, S) per group, resolutions may differ; masks: one per group.
        Several sizes: the first is the intact network, so that every block is entered.
        """
        members = [set(self.members(subnet)) for subnet in subnets]
        streams, layout = self.enter(crops, subnets, masks)
        layout = self.prepared(layout, drop_path)
        for index, block in enumerate(self.blocks):
            chosen = tuple(index in blocks for blocks in members)
            if any(chosen):
                drops = drop_path.of_block(index) if drop_path else (None,) * len(subnets)
                streams = self._run(block, streams, self.plan(index, layout, chosen, drops))
                layout = self.layout_after(block, layout)
        return self.leave(streams, layout)

    def readout(self, images: Tensor, subnet: Subnet, drop_path: DropPath | None = None) -> Tensor:
        """(B, readout_width): what a classifier stands on that learns together with the network.

        The class feature, unless a backbone says otherwise.
        """
        return self.streams((images,), (subnet,), (None,), drop_path)[0][0][:, 0]

    def readout_width(self, subnet: Subnet) -> int:
        """Channels of `readout`."""
        return self.feature_width(subnet)

    def taps(self, images: Tensor, subnet: Subnet, places: Sequence[int]) -> list[Tensor]:
        """Tokens (B, 1 + N, C) behind these of the size's blocks, read out as behind the last.

        places: numbers among the blocks of the size, rising. Of backbones with `reads_blocks`.
        """
        assert self.reads_blocks, type(self).__name__
        members = self.members(subnet)
        behind, found = {members[place] for place in places}, []
        streams, layout = self.enter((images,), (subnet,), (None,))
        layout = self.prepared(layout, None)
        for index in members:
            plan = self.plan(index, layout, (True,), (None,))
            streams = self._run(self.blocks[index], streams, plan)
            layout = self.layout_after(self.blocks[index], layout)
            if index in behind:
                found.append(self.leave(streams, layout)[0][0])
        return found

    def stage_maps(self, images: Tensor, subnet: Subnet) -> list[Tensor]:
        """(B, C, rows, columns) of each stage, C doubling: the map that leaves it.

        The last is read out as behind the last block. Of those with `reads_stages`.
        """
        raise NotImplementedError  # of those with stages

    def stage_means(self, images: Tensor, subnet: Subnet) -> list[Tensor]:
        """(B, C) of each stage: the mean of its map; the last is the class feature."""
        return [x.mean((2, 3)) for x in self.stage_maps(images, subnet)]

    def stage_widths(self, subnet: Subnet) -> list[int]:
        """The C of each."""
        return [self.feature_width(subnet) // 2**later for later in (3, 2, 1, 0)]

    def _run(self, block: nn.Module, streams: Streams, plan: object) -> Streams:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *streams, plan=plan, use_reentrant=False)
        return block(*streams, plan=plan)

    def enter(
        self, crops: Sequence[Tensor], subnets: Sequence[Subnet], masks: Sequence[Tensor | None]
    ) -> tuple[Streams, Any]:
        """(what enters the first block, its layout)."""
        raise NotImplementedError  # each backbone's own

    def prepared(self, layout: Any, drop_path: DropPath | None) -> Any:
        """The layout with what all blocks need of this pass and is made once, before them."""
        return layout

    def plan(
        self, index: int, layout: Any, chosen: tuple[bool, ...], drops: tuple[Any, ...]
    ) -> object:
        """What block `index` gets beside its streams. chosen: which of them use it."""
        raise NotImplementedError  # each backbone's own

    def layout_after(self, block: nn.Module, layout: Any) -> Any:
        """The layout of what leaves the block."""
        return layout

    def leave(self, streams: Streams, layout: Any) -> list[list[Tensor]]:
        """Tokens [subnet][crop group] from what leaves the last block."""
        raise NotImplementedError  # each backbone's own

    def draw_drop_path(
        self,
        packing: Packing,
        subnets: Sequence[Subnet],
        rate: float,
        generator: torch.Generator,
        device: torch.device | str,
    ) -> DropPath | None:
        """Stochastic depth for `streams`: what each block drops of each stream; None: nothing."""
        if rate == 0:
            return None
        members = [set(self.members(subnet)) for subnet in subnets]
        used = [[index in blocks for blocks in members] for index in range(len(self.blocks))]
        branches = [index for index, row in enumerate(used) for _ in range(2 * sum(row))]
        drops = iter(self.draw_branches(branches, packing, rate, generator, device))
        return DropPath(
            tuple(
                tuple((next(drops), next(drops)) if is_used else None for is_used in row)
                for row in used
            )
        )

    def draw_branches(
        self,
        branches: Sequence[int],
        packing: Packing,
        rate: float,
        generator: torch.Generator,
        device: torch.device | str,
    ) -> Iterable[Any]:
        """One drop per residual branch. branches: the block of each, in order."""
        raise NotImplementedError  # of those with stochastic depth

    def packing(self, crops: Sequence[Tensor]) -> Packing:
        """How many tokens the blocks see of each group of crops."""
        raise NotImplementedError  # each backbone's own

    def resized(self, size: Subnet, generator: torch.Generator) -> "ElasticBackbone":
        """A network of any one size, in the space or not, for a training to start from.

        generator: what it draws. What of it may learn has gradients. UserError: this backbone has
        only the sizes that were trained.
        """
        raise UserError(
            f"a {self.kind} has the trained sizes alone ({self.space.describe()}): `poa-ds extract`"
            " writes them; a run with backbone.name=tucker has a template that makes others, and"
            " `poa-ds template` finds one for a ViT"
        )

    def parameter_count(self, subnet: Subnet) -> int:
        """Parameters of one size as a network of its own (without the mask token)."""
        return self.shape.parameters(self.space.require(subnet))

    def flops(self, subnet: Subnet, image_size: int) -> float:
        """Multiply-adds of one forward pass of one image, times two."""
        return self.shape.flops(self.space.require(subnet), image_size)


def pooled(maps: Tensor) -> Tensor:
    """Final maps (n, rows, columns, C) -> (n, 1 + 4 x rows x columns, C).

    First the mean token, then the map enlarged to twice its side: the grid of the masks.
    """
    mean = reduce(maps, "n r k c -> n 1 c", "mean")
    tall = repeat(maps, "n r k c -> n (r i) k c", i=2)
    return torch.cat((mean, repeat(tall, "n r k c -> n (r k j) c", j=2)), dim=1)


def enlarge(masks: Tensor, rows: int, columns: int) -> Tensor:
    """Masks (n, N) of a square grid -> (n, rows, columns) of the map that they hide."""
    side = round(masks.shape[1] ** 0.5)
    assert side * side == masks.shape[1] and rows % side == columns % side == 0, masks.shape
    return repeat(masks, "n (r k) -> n (r i) (k j)", r=side, i=rows // side, j=columns // side)
