"""Batch: what one slot of one step works on, and how it is put together.

Crops are crop-major: the first crop of all images, then the second, ...
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from einops import rearrange
from torch import Tensor

from poa_ds.data.image.photometric import Draw, Photometric, PhotometricSpec, apply
from poa_ds.data.image.views import Views

Bad = tuple[str, str, str]  # (shard, key, cause) of an image that was replaced


@dataclass(frozen=True)
class Sample:
    """One image as a worker prepares it."""

    views: Views
    draws: Sequence[Draw]  # one per crop: global, then local; none for finished crops
    position: int
    label: int


@dataclass(frozen=True)
class Batch:
    """B images: crops, masks and, where the crops are still to be changed and normalised, how."""

    step: int
    slot: int
    global_crops: Tensor  # (views * B, C, S, S) from 0 to 255, or float and normalised
    local_crops: Tensor  # (L * B, C, s, s), likewise
    masks: Tensor  # (views * B, N) bool
    mask_indices: Tensor  # (M,) int64: places in the flattened masks
    mask_weights: Tensor  # (M,) float32: 1 / masked patches of that crop
    global_photometric: Photometric | None = None
    local_photometric: Photometric | None = None
    positions: Tensor | None = None  # (B,) int64
    labels: Tensor | None = None  # (B,) int64, -1: none
    bad: tuple[Bad, ...] = ()
    views: int = 2  # global crops of an image; one where labels are learnt

    @classmethod
    def of(
        cls,
        global_crops: Tensor,
        local_crops: Tensor,
        masks: Tensor,
        *,
        step: int = 0,
        slot: int = 0,
    ) -> Self:
        """A batch of finished crops: float, normalised, crop-major."""
        assert len(global_crops) == len(masks) and len(global_crops) % 2 == 0
        return cls(step, slot, global_crops, local_crops, masks, *mask_lists(masks))

    @property
    def size(self) -> int:
        """B, the number of images."""
        return len(self.global_crops) // self.views

    def to(self, device: torch.device | str) -> Self:
        """The batch with its tensors on a device; photometric parameters stay on the CPU."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from where it travels beside the computation."""
        return self._each(Tensor.pin_memory)

    def augmented(self, spec: PhotometricSpec) -> Self:
        """The batch with float32 normalised crops; unchanged when they are finished already."""
        if self.global_photometric is None:
            return self
        assert self.local_photometric is not None
        return dataclasses.replace(
            self,
            global_crops=apply(self.global_crops, self.global_photometric, spec),
            local_crops=apply(self.local_crops, self.local_photometric, spec),
            global_photometric=None,
            local_photometric=None,
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {
            field.name: change(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


def mask_lists(masks: Tensor) -> tuple[Tensor, Tensor]:
    """(mask_indices (M,) int64, mask_weights (M,) float32) of masks (2B, N)."""
    weights = 1 / masks.sum(1, keepdim=True)  # infinite without a mask, and then not taken
    return masks.flatten().nonzero().squeeze(1), weights.expand_as(masks)[masks]


def collate(
    samples: Sequence[Sample],
    masks: Tensor,
    *,
    step: int,
    slot: int,
    bad: Sequence[Bad] = (),
) -> Batch:
    """The batch of the samples, crop-major."""
    whole = [sample.views.global_crops for sample in samples]
    part = [sample.views.local_crops for sample in samples]
    draws = list(zip(*[sample.draws for sample in samples], strict=True))  # crop by crop
    views = len(samples[0].views.global_crops)
    crop_major = "crop image c h w -> (crop image) c h w"
    return Batch(
        step,
        slot,
        rearrange(torch.stack(whole, dim=1), crop_major),
        rearrange(torch.stack(part, dim=1), crop_major),
        masks,
        *mask_lists(masks),
        global_photometric=Photometric.stack(list(chain(*draws[:views]))) if draws else None,
        local_photometric=Photometric.stack(list(chain(*draws[views:]))) if draws else None,
        positions=torch.tensor([sample.position for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples]),
        bad=tuple(bad),
        views=views,
    )
