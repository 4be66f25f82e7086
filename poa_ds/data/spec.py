"""All that determines the content of a batch, apart from the images, and how a recipe says it."""

import random
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from poa_ds.data.image.labelled import LabelledCrop
from poa_ds.data.image.masks import batch_masks
from poa_ds.data.image.photometric import PhotometricSpec
from poa_ds.data.image.values import Values
from poa_ds.data.image.views import CropSpec
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe

OnError = Literal["raise", "replace"]


@dataclass(frozen=True)
class MaskSpec:
    """Block masks of the global crops on a grid of patches."""

    grid: int
    probability: float
    ratio: tuple[float, float]

    def draw(self, crops: int, rng: random.Random) -> Tensor:
        """(crops, grid * grid) bool."""
        sides = (self.grid, self.grid)
        return batch_masks(crops, *sides, probability=self.probability, ratio=self.ratio, rng=rng)


@dataclass(frozen=True)
class BatchSpec:
    """All that determines the content of every batch, apart from the images."""

    seed: int
    slots: int
    images_per_slot: int
    crops: CropSpec
    photometric: PhotometricSpec
    masks: MaskSpec
    on_error: OnError
    max_bad_fraction: float
    block_shards: int  # mixed at a time; 0: all images
    cache_bytes: int  # of fetched shards; 0: any number
    decoder: str  # one of decoders.NAMES
    values: Values | None = None  # what the images' numbers are; None: ordinary ones
    labelled: LabelledCrop | None = None  # the one crop of each image that labels are learnt from

    @property
    def views(self) -> int:
        """Global crops of an image."""
        return 1 if self.labelled else 2


def batch_spec(recipe: Recipe) -> BatchSpec:
    """The specification that a recipe asks for."""
    crops = recipe.crops
    return BatchSpec(
        seed=recipe.seed,
        slots=recipe.batch.slots,
        images_per_slot=recipe.batch.images_per_slot,
        crops=CropSpec(
            global_size=crops.global_size,
            global_scale=crops.global_scale,
            local_count=crops.local_count,
            local_size=crops.local_size,
            local_scale=crops.local_scale,
            flip=recipe.augmentation.flip,
        ),
        photometric=photometric_spec(recipe),
        masks=MaskSpec(
            derived.shape(recipe).grid(crops.global_size),
            recipe.masks.probability,
            recipe.masks.ratio,
        ),
        on_error=recipe.data.on_error,
        max_bad_fraction=recipe.data.max_bad_fraction,
        block_shards=recipe.data.block_shards,
        cache_bytes=recipe.data.cache_bytes,
        decoder=recipe.data.decoder,
        values=Values.of(recipe.data),
        labelled=labelled_crop(recipe) if recipe.finetune.classes else None,
    )


def labelled_crop(recipe: Recipe) -> LabelledCrop:
    """The crop that a recipe learns labels from."""
    crops, colours, options = recipe.crops, recipe.augmentation, recipe.finetune
    return LabelledCrop(
        size=crops.global_size,
        scale=crops.global_scale,
        flip=colours.flip,
        policy=options.policy,
        erase=options.erase,
        mean=colours.mean,
        std=colours.std,
    )


def photometric_spec(recipe: Recipe) -> PhotometricSpec:
    """The colours of a recipe; `blur: published` inverts the probabilities, as that code does."""
    options = recipe.augmentation
    blur = tuple(1 - p if options.blur == "published" else p for p in options.blur_probability)
    return PhotometricSpec(
        jitter=options.jitter,
        brightness=options.brightness,
        contrast=options.contrast,
        saturation=options.saturation,
        hue=options.hue,
        grey=options.gray,
        blur=blur,
        blur_kernel=options.blur_kernel,
        blur_sigma=options.blur_sigma,
        solarize=options.solarize,
        mean=options.mean,
        std=options.std,
    )
