"""One bag of patches as a network of its own; this file needs torch alone."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bag(nn.Module):
    def __init__(self, *, dim: int, depth: int, patch_size: int, in_chans: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, 1e-6) for _ in range(depth))
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, 1e-6)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 1 + N, C), the mean first."""
        x = self.patch(images).flatten(2).transpose(1, 2)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + F.gelu(layer(norm(x)))
        x = self.norm(x)
        return torch.cat((x.mean(1, keepdim=True), x), dim=1)

    @property
    def strides(self) -> list[int]:
        return [self.patch.stride[0]]

    def maps(self, images: Tensor) -> list[Tensor]:
        """The patches as one map (B, C, rows, columns)."""
        places = tuple(side // self.strides[0] for side in images.shape[2:])
        return [self.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, places)]

    def branches(self) -> list[list[nn.Module]]:
        return []

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)[:, 0]


Network = Bag


def load(folder: str | Path) -> Bag:
    """The network of an exported folder."""
    from safetensors.torch import load_file

    network = Bag(**json.loads((Path(folder) / "config.json").read_text())["model_args"])
    network.load_state_dict(load_file(Path(folder) / "state_dict.safetensors"))
    return network.eval()
