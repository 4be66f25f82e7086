"""Maps of a plain network -> four maps of equal channels at strides of factors 2, for a detector.

A ViT has one map: the pyramid is made from it alone, as ViTDet does (arXiv 2203.16527). A Swin or
ResNet has one of each stage: they get torchvision's feature pyramid.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

LEVELS = 4
CHANNELS = 256


class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, rows, columns)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SimplePyramid(nn.Module):
    """One map (B, C, ...) of stride p -> four of strides p/4, p/2, p and 2p."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        twice = nn.ConvTranspose2d(channels, half, 2, 2)
        four_times = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, 2),
            MapNorm(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        )
        scaled = [four_times, twice, nn.Identity(), nn.MaxPool2d(2, 2)]
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(width, out, 1, bias=False),
                MapNorm(out),
                nn.Conv2d(out, out, 3, padding=1, bias=False),
                MapNorm(out),
            )
            for scale, width in zip(scaled, (quarter, half, channels, channels), strict=True)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        [one] = maps
        return [level(one) for level in self.levels]


class StagePyramid(nn.Module):
    """Four maps of falling sides -> as many of `out` channels, each normalised first."""

    def __init__(self, channels: list[int], out: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(map(MapNorm, channels))
        self.pyramid = FeaturePyramidNetwork(channels, out)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        named = OrderedDict(
            (str(i), norm(x)) for i, (norm, x) in enumerate(zip(self.norms, maps, strict=True))
        )
        return list(self.pyramid(named).values())


class Features(nn.Module):
    """Images (B, 3, H, W) -> levels "0" to "3" and "pool", which takes every second place of "3".

    plain: the network of one size. H and W are multiples of the last of `strides`. autocast: the
    type in which products are computed, or None; levels are float32.
    """

    def __init__(
        self, plain: nn.Module, *, out: int = CHANNELS, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.plain, self.out_channels, self.autocast = plain, out, autocast
        side = 2 * plain.strides[-1]
        with torch.no_grad():
            channels = [x.shape[1] for x in plain.maps(torch.zeros(1, 3, side, side))]
        self.pyramid: nn.Module
        if len(channels) == LEVELS:
            self.pyramid, self.strides = StagePyramid(channels, out), list(plain.strides)
        else:
            [stride] = plain.strides
            self.pyramid = SimplePyramid(channels[0], out)
            self.strides = [stride * 2**level // 4 for level in range(LEVELS)]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        kind = self.autocast or torch.bfloat16
        with torch.autocast(images.device.type, kind, enabled=self.autocast is not None):
            levels = self.pyramid(self.plain.maps(images))
        named = OrderedDict((str(i), x.float()) for i, x in enumerate(levels))
        named["pool"] = named["3"][:, :, ::2, ::2]
        return named
