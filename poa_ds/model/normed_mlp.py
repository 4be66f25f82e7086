"""Linear layers with layer norms between them: the heads of an objective without prototypes."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.model.layers import ElasticLinear, initialise


class NormedMlp(nn.Module):
    """Features of any width -> rows; behind every layer but the last a layer norm and ReLU.

    The first layer is elastic. widths: of its whole input, then of every layer.
    """

    def __init__(self, *widths: int, init: str = "published") -> None:
        super().__init__()
        self.first = ElasticLinear(*widths[:2])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:-1])
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths[1:]))
        initialise(list(self.modules()), init)

    def forward(self, *streams: Tensor) -> Tensor:
        """Streams (R_i, C_i) -> (sum R_i, D); one call takes all of them."""
        x = torch.cat(self.first.of_tokens(*streams))
        for norm, layer in zip(self.norms, self.rest, strict=True):
            x = layer(F.relu(norm(x)))
        return x
