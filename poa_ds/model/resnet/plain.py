"""A ResNet with group norms that needs torch alone: the weights lie beside this file.

    from model import load
    network = load()                           # or load("folder")
    features = network(images)                 # (B, in_chans, S, S), normalised -> (B, C)
    maps = network.forward_features(images)    # -> (B, C, rows, columns)

Parameters have the names of torchvision and timm; the inner channels of the bottlenecks are
`width`, doubled from stage to stage, whatever their outer channels.

This file is copied whole into every export, so that it repeats what its siblings have as well.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    def __init__(
        self, inputs: int, inner: int, outputs: int, groups: int, stride: int, shortcut: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.GroupNorm(groups, inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.GroupNorm(groups, inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.GroupNorm(groups, outputs)
        self.downsample = None
        if shortcut:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(groups, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """outer: output channels of stage 1; layers: blocks of each stage."""

    def __init__(
        self,
        *,
        width: int,
        outer: int,
        stem: int,
        layers: list[int],
        groups: int = 32,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, stem, 7, 2, padding=3, bias=False)
        self.bn1 = nn.GroupNorm(groups, stem)
        inputs = stem
        for stage, depth in enumerate(layers):
            inner, outputs, blocks = width * 2**stage, outer * 2**stage, []
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                blocks.append(Bottleneck(inputs, inner, outputs, groups, stride, i == 0))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map (B, C, rows, columns)."""
        return self.maps(images)[-1]

    @property
    def strides(self) -> list[int]:
        """Pixels of the images from one place of each of the maps to the next."""
        return [4, 8, 16, 32]

    def maps(self, images: Tensor) -> list[Tensor]:
        """A map (B, C, rows, columns) of each stage."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, padding=1)
        found = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            found.append(x)
        return found

    def branches(self) -> list[list[nn.Module]]:
        """Of each block the modules whose outputs are added to its input: none may be dropped."""
        return []

    def forward(self, images: Tensor) -> Tensor:
        """The class feature (B, C): the mean over the last map."""
        return self.forward_features(images).mean((2, 3))


Network = ResNet


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, F32 or F16 there, in float32."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, about in json.loads(content[8:start]).items():
        if name != "__metadata__":
            kind = {"F32": torch.float32, "F16": torch.float16}[about["dtype"]]
            first, last = (start + offset for offset in about["data_offsets"])
            numbers = torch.frombuffer(bytearray(content[first:last]), dtype=kind)
            tensors[name] = numbers.reshape(about["shape"]).float()
    return tensors


def load(folder: str | Path | None = None) -> ResNet:
    """The network of a folder (default: this file's) in eval mode, float32, on the CPU."""
    folder = Path(folder or Path(__file__).parent)
    network = ResNet(**json.loads((folder / "config.json").read_text())["model_args"])
    network.load_state_dict(read(folder / "state_dict.safetensors"))
    return network.eval()
