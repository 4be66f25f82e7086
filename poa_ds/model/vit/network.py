"""The elastic vision transformer: one set of weights, every size of its space a network."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from poa_ds.model.backbone import ElasticBackbone, Streams
from poa_ds.model.layers import Block, ElasticLayerNorm, initialise
from poa_ds.model.options import COLOURS, Backbone, Norms, Positions, QkvBias
from poa_ds.model.packing import BlockPlan, Drop, Packing, draw_drops
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.vit import rope
from poa_ds.model.vit.shape import VitShape
from poa_kernels.slices import wide


class Embed(nn.Module):
    """Images -> tokens: patch projection, mask token, class token, registers, learned positions.

    Nothing here mixes channels after the projection, so one pass at full width serves every
    stream: a narrower one is a column prefix.
    """

    def __init__(
        self,
        dim: int,
        image_size: int,
        patch_size: int,
        registers: int,
        positions: Positions,
        channels: int,
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        if registers:  # after the class token, without positions
            self.reg_token = nn.Parameter(torch.zeros(1, registers, dim))
        self.registers = registers
        self.grid = image_size // patch_size
        self.pos_embed = None
        if positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, dim))

    def forward(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """Tokens (B, 1 + registers + N, C).

        images (B, channels, S, S); masks (B, N) bool, or None.
        """
        x = self.patch(images.to(self.patch.weight.dtype))
        places = x.shape[-2:]
        x = rearrange(x, "n c r k -> n (r k) c")
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token, x)
        x = torch.cat((repeat(self.cls_token, "1 1 c -> n 1 c", n=len(x)), x), dim=1)
        if self.pos_embed is not None:
            x = x + self._positions(*places)
        if not self.registers:
            return x
        registers = repeat(self.reg_token, "1 r c -> n r c", n=len(x))
        return torch.cat((x[:, :1], registers, x[:, 1:]), dim=1)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """(1, 1 + rows * columns, C): bicubic from the trained grid, in float32.

        The + 0.1 is the published code's, in training and evaluation (docs/method.md 2).
        """
        side = self.grid
        if rows == columns == side:
            return self.pos_embed
        table = rearrange(self.pos_embed[:, 1:].float(), "1 (r k) c -> 1 c r k", r=side)
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        table = F.interpolate(table, scale_factor=scale, mode="bicubic")
        table = rearrange(table, "1 c r k -> 1 (r k) c").to(self.pos_embed.dtype)
        return torch.cat((self.pos_embed[:, :1], table), dim=1)


class ElasticViT(ElasticBackbone):
    """Vision transformers of several widths and depths; their tokens are normalised, in float32.

    residual: see options.Backbone.
    """

    kind = "vit"
    reads_blocks = True
    other_sizes = "; `poa-ds template`, then `poa-ds init` make a start of any width and depth"
    block: type[Block] = Block

    def __init__(
        self,
        space: ElasticSpace,
        *,
        image_size: int,
        patch_size: int = Backbone.patch_size,
        head_dim: int = Backbone.head_dim,
        mlp_ratio: int = Backbone.mlp_ratio,
        layer_scale: float = Backbone.layer_scale,
        registers: int = Backbone.registers,
        norm_eps: float = Backbone.norm_eps,
        norms: Norms = Backbone.norms,
        swiglu: int = Backbone.swiglu,
        positions: Positions = Backbone.positions,
        qkv_bias: QkvBias = Backbone.qkv_bias,
        init: str = Backbone.init,
        residual: str = Backbone.residual,
        channels: int = COLOURS,
        activation_checkpointing: bool = False,
    ) -> None:
        dim, depth = space.intact.width, space.intact.depth
        shape = VitShape(
            widest=dim,
            deepest=depth,
            image_size=image_size,
            patch_size=patch_size,
            head_dim=head_dim,
            mlp_ratio=mlp_ratio,
            layer_scale=layer_scale,
            registers=registers,
            norm_eps=norm_eps,
            swiglu=swiglu,
            positions=positions,
            qkv_bias=qkv_bias,
            channels=channels,
        )
        super().__init__(space, shape, activation_checkpointing=activation_checkpointing)
        self.head_dim, self.residual = head_dim, residual
        self.embed = Embed(dim, image_size, patch_size, registers, positions, channels)
        norm_widths = dim // head_dim if norms == "per_width" else 0
        self.blocks = nn.ModuleList(
            self.block(
                dim,
                head_dim,
                mlp_ratio,
                layer_scale,
                eps=norm_eps,
                swiglu=swiglu,
                qkv_bias=qkv_bias,
                norm_widths=norm_widths,
            )
            for _ in range(depth)
        )
        self.norm = ElasticLayerNorm(dim, norm_eps, norm_widths)
        initialise(list(self.modules()), init)
        if self.embed.pos_embed is not None:
            nn.init.trunc_normal_(self.embed.pos_embed, std=0.02)
        nn.init.normal_(self.embed.cls_token, std=1e-6)
        if registers:
            nn.init.normal_(self.embed.reg_token, std=1e-6)

    @classmethod
    def of(
        cls, options: Backbone, image_size: int, space: ElasticSpace, *, channels: int
    ) -> "ElasticViT":
        return cls(
            space,
            image_size=image_size,
            patch_size=options.patch_size,
            head_dim=options.head_dim,
            mlp_ratio=options.mlp_ratio,
            layer_scale=options.layer_scale,
            registers=options.registers,
            norm_eps=options.norm_eps,
            norms=options.norms,
            swiglu=options.swiglu,
            positions=options.positions,
            qkv_bias=options.qkv_bias,
            init=options.init,
            residual=options.residual,
            channels=channels,
            activation_checkpointing=options.activation_checkpointing,
        )

    def enter(
        self, crops: Sequence[Tensor], subnets: Sequence[Subnet], masks: Sequence[Tensor | None]
    ) -> tuple[Streams, Packing]:
        tokens = [self.embed(images, mask) for images, mask in zip(crops, masks, strict=True)]
        rows = torch.cat([rearrange(t, "n tokens c -> (n tokens) c") for t in tokens])
        rows = wide(rows) if self.residual == "fp32" else rows
        segments = tuple(tuple(t.shape[:2]) for t in tokens)
        angles = map(self._angles, crops) if self.shape.positions == "rope" else ()
        packing = Packing(segments, tuple(angles))
        return tuple(rows[:, : subnet.width] for subnet in subnets), packing

    def _angles(self, images: Tensor) -> Tensor:
        """What rotary positions turn the patches of these images by (`vit.rope`)."""
        rows, columns = (side // self.patch_size for side in images.shape[-2:])
        return rope.angles(rows, columns, self.head_dim, self.embed.cls_token)

    def plan(
        self,
        index: int,
        layout: Packing,
        chosen: tuple[bool, ...],
        drops: tuple[tuple[Drop, Drop] | None, ...],
    ) -> BlockPlan:
        return BlockPlan(layout, chosen, drops)

    def leave(self, streams: Streams, layout: Packing) -> list[list[Tensor]]:
        tokens = [layout.split(self.norm.finely(x)) for x in streams]
        if not (registers := self.embed.registers):
            return tokens
        return [[torch.cat((t[:, :1], t[:, 1 + registers :]), 1) for t in of] for of in tokens]

    def draw_branches(
        self,
        branches: Sequence[int],
        packing: Packing,
        rate: float,
        generator: torch.Generator,
        device: torch.device | str,
    ) -> Iterable[Drop]:
        return draw_drops(packing, rate, generator, count=len(branches), device=device)

    def plain_state(self) -> dict[str, Tensor]:
        """The state dict with every matrix as it is used."""
        return self.state_dict()

    def packing(self, crops: Sequence[Tensor]) -> Packing:
        """How the tokens of these crops will be packed."""
        first = 1 + self.embed.registers
        return Packing(
            tuple(
                (len(images), first + (images.shape[-1] // self.patch_size) ** 2)
                for images in crops
            )
        )


NETWORK = ElasticViT
