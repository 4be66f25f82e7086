"""Heads of students that imitate a teacher's embedding; thrown away after the training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.model.layers import ElasticLinear, initialise
from poa_kernels.slices import wide


class Projector(nn.Module):
    """Features of any width -> unit rows in the teacher's space. The first layer is elastic."""

    def __init__(self, dim: int, out: int, *, hidden: int, init: str = "published") -> None:
        super().__init__()
        self.first, self.last = ElasticLinear(dim, hidden), nn.Linear(hidden, out)
        initialise(list(self.modules()), init)

    def forward(self, *streams: Tensor) -> Tensor:
        """Streams (R_i, C_i) -> (sum R_i, D) of unit rows, in float32 or better."""
        return unit(self.last(F.relu(torch.cat(self.first.of_tokens(*streams)))))


class Straight(nn.Module):
    """Features of any width -> unit rows in the teacher's space, by one elastic layer.

    It begins as the identity: a student that begins as its teacher has nothing to learn yet, and
    no random head disturbs it. Where the widths differ, the channels that both have.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.first = ElasticLinear(dim, out)
        nn.init.eye_(self.first.weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, *streams: Tensor) -> Tensor:
        """Streams (R_i, C_i) -> (sum R_i, D) of unit rows, in float32 or better."""
        return unit(torch.cat(self.first.of_tokens(*streams)))


def unit(x: Tensor) -> Tensor:
    """Rows of length one, in float32 or better."""
    return F.normalize(wide(x), dim=-1)
