"""The template of a vision transformer: one small tensor from which all its matrices are made.

The six matrices of a block, cut into D x D slices (q, k, v, projection, `mlp_ratio` each of both
layers of the MLP), are slices of one tensor over all blocks, which is held in Tucker's form:

    W[m] = U (sum_i X[m, i] G[i]) V^T

G `core` is the template; X `block_factors`, U `row_factor` and V `column_factor` are its scalers.
The form is SWEET's (arXiv 2601.19694); layout and start are ours (docs/methods/sweet.md).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from poa_ds.model.tucker.shape import ATTENTION, Ranks, slices
from poa_kernels.slices import wide


@dataclass(frozen=True)
class Noise:
    """Factors around 1 of a template's channels in one pass: of rows (r2,) and columns (r3,)."""

    rows: Tensor
    columns: Tensor


class Matrices(NamedTuple):
    """Of one block: qkv (3D, D) head by head, proj (D, D), fc1 (mD, D), fc2 (D, mD)."""

    qkv: Tensor
    proj: Tensor
    fc1: Tensor
    fc2: Tensor


class Template(nn.Module):
    """Makes the matrices of all blocks, once per pass.

    The factors are parameters that every block depends on: one module owns them, is entered once
    and hands out tensors, so that ZeRO gathers and reduces each once. They are its own, not those
    of modules in it: of a module that is gathered with all below it ZeRO-3 takes the gradients when
    those of its inputs are there, and this one has no input.
    """

    def __init__(
        self, dim: int, depth: int, *, head_dim: int, mlp_ratio: int, ranks: Ranks, std: float
    ) -> None:
        super().__init__()
        self.head_dim, self.mlp_ratio = head_dim, mlp_ratio
        first, rows, columns = ranks
        self.core = nn.Parameter(torch.empty(first, rows, columns))
        self.row_factor = nn.Parameter(torch.empty(dim, rows))
        self.column_factor = nn.Parameter(torch.empty(dim, columns))
        self.depth, self.ranks = depth, ranks
        for block in range(depth):  # a parameter each, as each has its own learning rate
            factor = nn.Parameter(torch.empty(slices(mlp_ratio), first))
            self.register_parameter(f"block_factors_{block}", factor)
        # orthonormal columns: entries of the matrices then have the standard deviation std
        nn.init.orthogonal_(self.row_factor)
        nn.init.orthogonal_(self.column_factor)
        for factor in self.block_factors():
            nn.init.normal_(factor, std=first**-0.5)
        nn.init.normal_(self.core, std=std * dim / (rows * columns) ** 0.5)

    def block_factors(self) -> list[Tensor]:
        """The scalers (slices, r1) of each block."""
        return [getattr(self, f"block_factors_{block}") for block in range(self.depth)]

    def forward(self, noise: Noise | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """qkv (L, 3D, D), proj (L, D, D), fc1 (L, mD, D), fc2 (L, D, mD) of all L blocks.

        Hidden unit m a + j of the MLP is channel a of slice j, so that the first w channels of
        the factors make the slice of width w of every matrix.
        """
        rows, columns = self.row_factor, self.column_factor
        if noise is not None:
            rows, columns = rows * noise.rows.to(rows), columns * noise.columns.to(columns)
        scalers = torch.cat(self.block_factors())
        mixed = (scalers @ self.core.flatten(1)).unflatten(1, self.core.shape[1:])
        whole = (rows @ mixed @ columns.T).unflatten(0, (self.depth, -1))
        heads, fc1, fc2 = whole.split([ATTENTION, self.mlp_ratio, self.mlp_ratio], dim=1)
        qkv = rearrange(heads[:, :3], "l q (h d) i -> l (h q d) i", d=self.head_dim)
        return (
            qkv,
            heads[:, 3].contiguous(),  # a view would keep all of the others
            rearrange(fc1, "l j a i -> l (a j) i"),
            rearrange(fc2, "l j o b -> l o (b j)"),
        )

    def slices(self, block: Matrices) -> Tensor:
        """The square slices (4 + 2m, D, D) that make up these matrices of one block."""
        heads = rearrange(block.qkv, "(h q d) i -> q (h d) i", q=3, d=self.head_dim)
        fc1 = rearrange(block.fc1, "(a j) i -> j a i", j=self.mlp_ratio)
        fc2 = rearrange(block.fc2, "o (b j) -> j o b", j=self.mlp_ratio)
        return torch.cat((heads, block.proj[None], fc1, fc2))

    def blocks(self, noise: Noise | None = None) -> tuple[Matrices, ...]:
        """The matrices block by block."""
        parts = (part.unbind() for part in self(noise))
        return tuple(Matrices(*of_block) for of_block in zip(*parts, strict=True))

    def exact_blocks(self) -> tuple[Matrices, ...]:
        """`blocks` in float32 or better, whatever the precision of the factors."""
        factors = {name: wide(p) for name, p in self.named_parameters()}
        parts = (part.unbind() for part in functional_call(self, factors, ()))
        return tuple(Matrices(*of_block) for of_block in zip(*parts, strict=True))

    def draw_noise(self, strength: float, generator: torch.Generator) -> Noise:
        """Uniform factors from 1 - strength to 1 + strength, on the CPU."""
        lengths = self.core.shape[1:]
        rows, columns = (
            1 + strength * (2 * torch.rand(n, generator=generator) - 1) for n in lengths
        )
        return Noise(rows, columns)
