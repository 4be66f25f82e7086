"""The published image pipeline: every crop finished by PIL and torchvision, image by image.

What DINO, iBOT, DINOv2 and POA do in their workers. Here only to be measured beside ours.
"""

from collections.abc import Callable

from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode

from poa_ds.data.image.opening import opened
from poa_ds.data.image.photometric import SOLARIZE_FROM, PhotometricSpec
from poa_ds.data.image.views import CropSpec


def published(crops: CropSpec, colours: PhotometricSpec) -> Callable[[bytes], list[Tensor]]:
    """Encoded image -> its finished crops: two global ones, then the local ones."""
    whole = crops.global_size, crops.global_scale
    part = crops.local_size, crops.local_scale
    first, second, local = colours.blur
    kinds = [
        _crop(*whole, crops.flip, colours, blur=first, solarize=0.0),
        _crop(*whole, crops.flip, colours, blur=second, solarize=colours.solarize),
        *[_crop(*part, crops.flip, colours, blur=local, solarize=0.0)] * crops.local_count,
    ]

    def views(content: bytes) -> list[Tensor]:
        with opened(content) as file:
            image = file.convert("RGB")
        return [transform(image) for transform in kinds]

    return views


def _crop(
    size: int,
    scale: tuple[float, float],
    flip: float,
    colours: PhotometricSpec,
    *,
    blur: float,
    solarize: float,
) -> Callable[[Image.Image], Tensor]:
    jitter = v1.ColorJitter(colours.brightness, colours.contrast, colours.saturation, colours.hue)
    gaussian = v1.GaussianBlur(colours.blur_kernel, colours.blur_sigma)
    return v1.Compose(
        [
            v1.RandomResizedCrop(size, scale, interpolation=InterpolationMode.BICUBIC),
            v1.RandomHorizontalFlip(flip),
            v1.RandomApply([jitter], colours.jitter),
            v1.RandomGrayscale(colours.grey),
            v1.RandomApply([gaussian], blur),
            v1.RandomSolarize(round(255 * SOLARIZE_FROM), solarize),
            v1.ToTensor(),
            v1.Normalize(colours.mean, colours.std),
        ]
    )
