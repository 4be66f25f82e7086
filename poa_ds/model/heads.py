"""Prototype heads: per head a small MLP and a bank of prototypes of its own (docs/method.md 4)."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from poa_ds.model.layers import ElasticLinear, initialise
from poa_kernels.slices import wide


class PrototypeHead(nn.Module):
    """Features of any width -> unit bottleneck vectors, and the prototypes they are scored with.

    The first linear layer is elastic. Prototypes are weight-normed: weight_g * v / |v|, no bias.
    """

    def __init__(
        self, dim: int, prototypes: int, *, hidden: int, bottleneck: int, layers: int = 3
    ) -> None:
        super().__init__()
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        self.first = ElasticLinear(widths[0], widths[1])
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths[1:]))
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)  # nn.Linear's own

    def forward(self, *streams: Tensor) -> tuple[Tensor, Tensor]:
        """Streams (R_i, C_i) -> bottleneck (sum R_i, D) of unit rows, prototypes (K, D).

        One call takes everything that goes through the head in a step (lockstep under ZeRO-3).
        """
        z = torch.cat(self.first.of_tokens(*streams))
        for layer in self.rest:
            z = layer(F.gelu(z))
        eps = 1e-6 if z.dtype == torch.float16 else 1e-12
        return F.normalize(z, dim=-1, eps=eps), _WeightNorm.apply(self.weight_v, self.weight_g)


class _WeightNorm(torch.autograd.Function):
    """weight_g * v / |v| by rows, in float32 or better. Keeps the parameters, no wide copy."""

    @staticmethod
    def forward(ctx, weight_v, weight_g):
        ctx.save_for_backward(weight_v, weight_g)
        v = wide(weight_v)
        return (v * (wide(weight_g) / v.norm(dim=1, keepdim=True))).to(weight_v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        weight_v, weight_g = ctx.saved_tensors
        v, gradient = wide(weight_v), wide(gradient)
        norm = v.norm(dim=1, keepdim=True)
        of_g = (gradient * v).sum(1, keepdim=True) / norm
        of_v = (gradient - v * (of_g / norm)) * (wide(weight_g) / norm)
        return of_v.to(weight_v.dtype), of_g.to(weight_g.dtype)


class HeadBank(nn.ModuleList):
    """Several prototype heads over the same features."""

    def __init__(
        self,
        dim: int,
        prototypes: Sequence[int],
        *,
        hidden: int,
        bottleneck: int,
        layers: int = 3,
        init: str = "published",
    ) -> None:
        super().__init__(
            PrototypeHead(dim, k, hidden=hidden, bottleneck=bottleneck, layers=layers)
            for k in prototypes
        )
        initialise(list(self.modules()), init)

    def __getitem__(self, index: int | slice) -> "PrototypeHead | HeadBank":
        """One head, or a bank of the same heads."""
        if not isinstance(index, slice):
            return super().__getitem__(index)
        part = HeadBank.__new__(HeadBank)
        nn.ModuleList.__init__(part, list(self)[index])
        return part

    def forward(self, *streams: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(bottleneck, prototypes) of each head."""
        return [head(*streams) for head in self]

    def scores(self, x: Tensor) -> list[Tensor]:
        """Scores (R, K) of each head for features x (R, C)."""
        return [score(*pair) for pair in self(x)]


def score(bottleneck: Tensor, prototypes: Tensor) -> Tensor:
    """(R, D), (K, D) -> (R, K) in float32 or better."""
    return wide(F.linear(bottleneck, prototypes))
