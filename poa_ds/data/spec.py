"""All that determines the content of a batch, apart from the images, and how a recipe says it."""

from dataclasses import dataclass
from typing import Literal

from poa_ds.data.image.photometric import PhotometricSpec
from poa_ds.data.image.views import CropSpec
from poa_ds.model.shape import shape
from poa_ds.recipe.tree import Config

OnError = Literal["raise", "replace"]


@dataclass(frozen=True)
class MaskSpec:
    """Block masks of the global crops on a grid of patches."""

    grid: int
    probability: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)


@dataclass(frozen=True)
class BatchSpec:
    """All that determines the content of every batch, apart from the images."""

    seed: int
    slots: int
    images_per_slot: int
    crops: CropSpec
    photometric: PhotometricSpec
    masks: MaskSpec
    on_error: OnError = "raise"
    max_bad_fraction: float = 1e-4
    block_shards: int = 0  # mixed at a time; 0: all images
    cache_bytes: int = 0  # of fetched shards; 0: any number
    decoder: str = "torchvision"  # one of decoders.NAMES


def batch_spec(config: Config) -> BatchSpec:
    """The specification that a recipe asks for."""
    crops = config.crops
    return BatchSpec(
        seed=config.seed,
        slots=config.batch.slots,
        images_per_slot=config.batch.images_per_slot,
        crops=CropSpec(
            global_size=crops.global_size,
            global_scale=crops.global_scale,
            local_count=crops.local_count,
            local_size=crops.local_size,
            local_scale=crops.local_scale,
            flip=config.augmentation.flip,
        ),
        photometric=photometric_spec(config),
        masks=MaskSpec(
            shape(config).grid(crops.global_size),
            config.masks.probability,
            config.masks.ratio,
        ),
        on_error=config.data.on_error,
        max_bad_fraction=config.data.max_bad_fraction,
        block_shards=config.data.block_shards,
        cache_bytes=config.data.cache_bytes,
        decoder=config.data.decoder,
    )


def photometric_spec(config: Config) -> PhotometricSpec:
    """The colours of a recipe; `blur: published` inverts the probabilities, as that code does."""
    recipe = config.augmentation
    blur = tuple(1 - p if recipe.blur == "published" else p for p in recipe.blur_probability)
    return PhotometricSpec(
        jitter=recipe.jitter,
        brightness=recipe.brightness,
        contrast=recipe.contrast,
        saturation=recipe.saturation,
        hue=recipe.hue,
        grey=recipe.gray,
        blur=blur,
        blur_kernel=recipe.blur_kernel,
        blur_sigma=recipe.blur_sigma,
        solarize=recipe.solarize,
        mean=recipe.mean,
        std=recipe.std,
    )
