"""Crops to learn labels from: a random crop, a policy of changes and erased boxes, all timm's.

timm draws from the global generators of Python, NumPy and torch. Here they begin anew with every
image, by its position alone, and go on afterwards as if nothing had been drawn.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image


@dataclass(frozen=True)
class LabelledCrop:
    """size in pixels; scale: the range of the share of the area; flip, erase: probabilities.

    policy: of changes, in timm's words, such as rand-m9-mstd0.5-inc1; empty: none.
    """

    size: int
    scale: tuple[float, float]
    flip: float
    policy: str
    erase: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Tensor, rng: random.Random) -> Tensor:
        """(3, size, size) float32, normalised, of an image (3, H, W) uint8."""
        with seeded(rng.getrandbits(32)):
            return self.transform(to_pil_image(image))

    @cached_property
    def transform(self) -> Callable[[Image], Tensor]:
        """What timm makes of these numbers. Erased boxes are noise of every pixel, as published."""
        from timm.data import auto_augment, create_transform  # seconds

        made = create_transform(
            self.size,
            is_training=True,
            scale=self.scale,
            hflip=self.flip,
            color_jitter=None,  # a policy takes its place, as published
            auto_augment=self.policy or None,
            interpolation="bicubic",
            mean=self.mean,
            std=self.std,
            re_prob=self.erase,
            re_mode="pixel",
        )
        for step in made.transforms:
            ways = (getattr(step, "ops", ()), *getattr(step, "policy", ()))
            for change in chain.from_iterable(ways):
                if change.aug_fn is auto_augment.posterize:
                    change.aug_fn = posterized
        return made


def posterized(image: Image, bits: int, **_: object) -> Image:
    """The image with so many bits of each colour; 0, which a policy may draw: black.

    As Pillow did before it refused 0, of which timm knows nothing.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else image.point(lambda _: 0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators begin with `seed` (32 bits) in here."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
