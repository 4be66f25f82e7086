"""What a network says of an image: its class token, of every size at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from poa_ds.data.image.values import Values
from poa_ds.evaluate.knn_protocol import Encoder
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe

PIXEL_SIDE = 32  # raw pixels are compared at this size or below


def features(model: ElasticBackbone, images: Tensor, subnet: Subnet) -> Tensor:
    """Class tokens (B, width) of normalised float images (B, channels, S, S)."""
    return model(images, subnet)[:, 0]


def features_and_mean(model: ElasticBackbone, images: Tensor, subnet: Subnet) -> Tensor:
    """(B, 2 x width): the class tokens, then the mean of the patch tokens."""
    tokens = model(images, subnet)
    return torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=1)


def patch_features(model: ElasticBackbone, images: Tensor, subnet: Subnet) -> Tensor:
    """(B, N, width): the patch tokens, row by row of the image."""
    return model(images, subnet)[:, 1:]


def raw_pixels(images: Tensor, side: int = PIXEL_SIDE) -> Tensor:
    """(B, 3 x s x s) of float images (B, 3, S, S), which are shrunk if S is above s = side."""
    if images.shape[-1] > side:
        images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
    return images.flatten(1)


def even4(depth: int) -> list[int]:
    """Numbers of the blocks that POA reads out of so many: four evenly spread, the last always.

    Fewer where the rule names a block twice, below six blocks, which the published code refuses.
    """
    return sorted({min(round(depth / 4 * i), depth - 1) for i in (1, 2, 3, 4)})


def last4(depth: int) -> list[int]:
    """Numbers of the blocks that DINOv2 reads out: the last four."""
    return list(range(max(depth - 4, 0), depth))


TAPS = {"even4": even4, "last4": last4}
STAGES = "stages"  # what is read out of a backbone that has some
PIXELS = "pixels"  # in the place of what a network says


def tapped(model: ElasticBackbone, subnet: Subnet, taps: str) -> list[int]:
    """Numbers of the blocks of this size that are read out."""
    return TAPS[taps](len(model.members(subnet)))


def features_of_blocks(
    model: ElasticBackbone, images: Tensor, subnet: Subnet, *, taps: str
) -> Tensor:
    """(B, (T + 1) x width): the class tokens behind T blocks, then the last one's mean of patches.

    Of backbones that are read out behind blocks.
    """
    tokens = model.taps(images, subnet, tapped(model, subnet, taps))
    return torch.cat([*(t[:, 0] for t in tokens), tokens[-1][:, 1:].mean(1)], dim=1)


def features_of_stages(model: ElasticBackbone, images: Tensor, subnet: Subnet) -> Tensor:
    """(B, C1 + ... + C4): the mean of the map of each stage; the last is the class feature."""
    return torch.cat(model.stage_means(images, subnet), dim=1)


def kinds(model: ElasticBackbone, subnet: Subnet, feature: str) -> dict[str, slice]:
    """Kind of features -> its columns of what `READS[feature]` gives."""
    width = model.feature_width(subnet)
    if feature in TAPS:
        return kinds_of_blocks(width, len(tapped(model, subnet, feature)))
    if feature != STAGES:
        return {feature: slice(0, width)}
    every = sum(model.stage_widths(subnet))
    return {"1 stage": slice(every - width, every), "4 stages": slice(0, every)}


def kinds_of_blocks(width: int, taps: int) -> dict[str, slice]:
    """The same of tokens of so many channels behind so many blocks."""
    last = taps * width
    found = {
        "1 block": slice(last - width, last),
        "1 block + avg": slice(last - width, last + width),
    }
    if taps > 1:
        found[f"{taps} blocks"] = slice(0, last)
        found[f"{taps} blocks + avg"] = slice(0, last + width)
    return found


READS = {
    "cls": features,
    "cls+avg": features_and_mean,
    "patches": patch_features,
    STAGES: features_of_stages,
    PIXELS: features,
    **{name: partial(features_of_blocks, taps=name) for name in TAPS},
}


def numbers_read(
    model: ElasticBackbone, subnet: Subnet, feature: str, rows: int, columns: int
) -> int:
    """How many numbers an image of these pixels gives."""
    width = model.feature_width(subnet)
    if feature == STAGES:
        return sum(model.stage_widths(subnet))
    if feature in TAPS:
        return (len(tapped(model, subnet, feature)) + 1) * width
    if feature != "patches":
        return (1 + (feature == "cls+avg")) * width
    with torch.inference_mode():
        images = torch.zeros(1, model.shape.channels, rows, columns)
        tokens = model(images, model.space.smallest).shape[1]
    return (tokens - 1) * width


@dataclass(frozen=True)
class Readout:
    """How features are computed. "bf16" and "fp16" run in autocast; workers: loader processes."""

    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device
    precision: str = "fp32"
    workers: int = 0
    values: Values | None = None  # what the images' numbers are; None: ordinary images

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device | str) -> "Readout":
        """As the recipe says. On a CPU: always fp32."""
        device, options = torch.device(device), recipe.augmentation
        precision = recipe.precision if device.type == "cuda" else "fp32"
        return cls(
            options.mean,
            options.std,
            device,
            precision,
            recipe.data.workers,
            Values.of(recipe.data),
        )

    def encoder(
        self,
        model: ElasticBackbone,
        subnets: Sequence[Subnet],
        read: Callable[[ElasticBackbone, Tensor, Subnet], Tensor] = features,
    ) -> Encoder:
        """From images (B, C, S, S) of 0 to 255 to what `read` takes of each size."""
        shift, scale = (
            255 * rearrange(torch.tensor(x, device=self.device), "c -> c 1 1")
            for x in (self.mean, self.std)
        )
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

        def encode(images: Tensor) -> list[Tensor]:
            normalised = (images.float() - shift) / scale
            with torch.autocast(self.device.type, low or torch.bfloat16, enabled=low is not None):
                return [read(model, normalised, subnet) for subnet in subnets]

        return encode


def random_weights(recipe: Recipe) -> ElasticBackbone:
    """The recipe's backbone before any training: the other floor, when `knn` measures it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return backbone(recipe)
