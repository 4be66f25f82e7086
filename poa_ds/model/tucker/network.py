"""The elastic vision transformer whose matrices are made from a template in every pass.

Blocks own vectors alone and get their matrices as arguments. A slice of the factors makes the
slice of every matrix, so sizes, streams and kernels are the ViT's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poa_ds.model.backbone import DropPath, Streams
from poa_ds.model.layers import Block, elastic_linear
from poa_ds.model.options import Backbone
from poa_ds.model.packing import BlockPlan, Drop, Packing
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.tucker.decompose import fill
from poa_ds.model.tucker.resize import Resize, check
from poa_ds.model.tucker.shape import Ranks, TuckerShape, ranks_of
from poa_ds.model.tucker.template import Matrices, Noise, Template
from poa_ds.model.vit.network import ElasticViT
from poa_ds.system.errors import UserError

# of a block, as `Matrices` has them
MATRICES = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


@dataclass(frozen=True)
class MadeAffine:
    """A linear layer of one pass: a matrix that was made, and the bias of a block."""

    weight: Tensor
    bias: Tensor
    input_scale: float

    def __call__(self, *streams: Tensor, outs: Sequence[int]) -> tuple[Tensor, ...]:
        return elastic_linear(streams, self.weight, self.bias, outs, self.input_scale)


class MadeLinear(nn.Module):
    """What a block keeps of a linear layer whose matrix it is given: the bias."""

    input_scale = 1.0

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5  # PyTorch's default
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))

    def of(self, weight: Tensor) -> MadeAffine:
        """The layer with this matrix."""
        return MadeAffine(weight, self.bias, self.input_scale)


@dataclass(frozen=True)
class MadePlan(BlockPlan):
    """matrices: of the block in this pass."""

    matrices: Matrices


class TemplateBlock(Block):
    """A block without matrices of its own."""

    linear = MadeLinear

    def attend(
        self, streams: Sequence[Tensor], packings: Sequence[Packing], plan: MadePlan
    ) -> tuple[Tensor, ...]:
        qkv, proj = self.attn.qkv.of(plan.matrices.qkv), self.attn.proj.of(plan.matrices.proj)
        return self.attn.attend(streams, packings, qkv, proj)

    def mix(self, streams: Sequence[Tensor], plan: MadePlan) -> tuple[Tensor, ...]:
        fc1, fc2 = self.mlp.fc1.of(plan.matrices.fc1), self.mlp.fc2.of(plan.matrices.fc2)
        return self.mlp.mix(streams, fc1, fc2)


@dataclass(frozen=True)
class NoisyDropPath(DropPath):
    """noise: of the template in the same pass."""

    noise: Noise


@dataclass(frozen=True)
class Layout:
    """How the tokens of a pass are packed, and the matrices that were made for it."""

    packing: Packing
    matrices: tuple[Matrices, ...]


class ElasticTucker(ElasticViT):
    """A ViT in Tucker's form. noise: see options.Template; it is drawn with stochastic depth."""

    kind = "tucker"
    block = TemplateBlock
    other_sizes = "; `poa-ds init` makes a start of any width and depth from this template"

    def __init__(
        self,
        space: ElasticSpace,
        *,
        ranks: Ranks,
        noise: float = 0.0,
        mlp_ratio: int = Backbone.mlp_ratio,
        init: str = Backbone.init,
        **vit: int | float | bool,
    ) -> None:
        super().__init__(space, mlp_ratio=mlp_ratio, init=init, **vit)
        dim, depth = space.intact.width, space.intact.depth
        self.shape, self.noise = TuckerShape(**vars(self.shape), ranks=ranks), noise
        self.template = Template(
            dim,
            depth,
            head_dim=self.head_dim,
            mlp_ratio=mlp_ratio,
            ranks=ranks,
            std=(3 * dim) ** -0.5 if init == "torch" else 0.02,
        )
        if init != "torch":
            for layer in self.modules():
                if isinstance(layer, MadeLinear):
                    nn.init.zeros_(layer.bias)

    @classmethod
    def of(
        cls, options: Backbone, image_size: int, space: ElasticSpace, *, channels: int
    ) -> "ElasticTucker":
        return cls(
            space,
            ranks=ranks_of(options),
            noise=options.template.noise,
            image_size=image_size,
            patch_size=options.patch_size,
            head_dim=options.head_dim,
            mlp_ratio=options.mlp_ratio,
            layer_scale=options.layer_scale,
            init=options.init,
            residual=options.residual,
            channels=channels,
            activation_checkpointing=options.activation_checkpointing,
        )

    def prepared(self, layout: Packing, drop_path: DropPath | None) -> Layout:
        noise = drop_path.noise if isinstance(drop_path, NoisyDropPath) else None
        return Layout(layout, self.template.blocks(noise))

    def plan(
        self,
        index: int,
        layout: Layout,
        chosen: tuple[bool, ...],
        drops: tuple[tuple[Drop, Drop] | None, ...],
    ) -> MadePlan:
        return MadePlan(layout.packing, chosen, drops, layout.matrices[index])

    def leave(self, streams: Streams, layout: Layout) -> list[list[Tensor]]:
        return super().leave(streams, layout.packing)

    def draw_drop_path(
        self,
        packing: Packing,
        subnets: Sequence[Subnet],
        rate: float,
        generator: torch.Generator,
        device: torch.device | str,
    ) -> DropPath | None:
        drawn = super().draw_drop_path(packing, subnets, rate, generator, device)
        if self.noise == 0:
            return drawn
        drops = drawn.drops if drawn else ((None,) * len(subnets),) * len(self.blocks)
        return NoisyDropPath(drops, self.template.draw_noise(self.noise, generator))

    @torch.no_grad()
    def resized(self, size: Subnet, generator: torch.Generator) -> "ElasticTucker":
        """In float32 and eval mode; of the template the core rests, all else may learn.

        UsageError: there is no such ViT.
        """
        shape = self.shape
        check(shape, size)
        made = ElasticTucker(
            ElasticSpace((size.width,), (size.depth,)),
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            head_dim=shape.head_dim,
            mlp_ratio=shape.mlp_ratio,
            layer_scale=shape.layer_scale,
            channels=shape.channels,
            ranks=shape.ranks,
        )
        resize = Resize(
            self.state_dict(),
            self.space,
            size,
            input_scale=self.input_scale,
            generator=generator,
        )
        made.load_state_dict(resize.state(made.state_dict()))
        made.template.core.requires_grad_(False)
        return made.eval()

    @torch.no_grad()
    def plain_state(self) -> dict[str, Tensor]:
        """Vectors and made matrices under the ViT's names; in float32 or better."""
        state = {n: t for n, t in self.state_dict().items() if not n.startswith("template.")}
        for index, made in enumerate(self.template.exact_blocks()):
            state |= {f"blocks.{index}.{name}": m for name, m in zip(MATRICES, made, strict=True)}
        return state

    @torch.no_grad()
    def take(self, plain: Mapping[str, Tensor]) -> float:
        """Be the network of this `plain_state` as far as the ranks allow.

        The relative error of its matrices. UserError: it has what this network has not.
        """
        rest, blocks = dict(plain), []
        for index in range(len(self.blocks)):
            blocks.append(Matrices(*(rest.pop(f"blocks.{index}.{name}") for name in MATRICES)))
        own = {name: p for name, p in self.state_dict().items() if not name.startswith("template.")}
        if own.keys() != rest.keys():
            other = ", ".join(sorted(own.keys() ^ rest.keys())[:4])
            raise UserError(f"a {self.kind} is not like that network: one of them has {other}")
        for name, tensor in own.items():
            tensor.copy_(rest[name])
        return fill(self.template, blocks)


NETWORK = ElasticTucker
