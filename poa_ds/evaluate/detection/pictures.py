"""Images and their things, as a detector learns from them: by position, on any rank alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from poa_ds.data.image.opening import Undecodable
from poa_ds.data.image.views import decode
from poa_ds.data.store.order import VIEWS, Order, keyed, slot_positions
from poa_ds.data.workers import loaded
from poa_ds.evaluate.detection.annotations import Annotations, Picture
from poa_ds.evaluate.detection.coco import mask
from poa_ds.evaluate.detection.settings import Settings
from poa_ds.system import dist
from poa_ds.system.errors import UserError

FLIP = 0.5
Target = dict[str, Tensor]  # boxes (n, 4), labels (n,), masks (n, H, W)


def image_of(annotations: Annotations, picture: Picture) -> Tensor:
    """(3, H, W) uint8. UserError: it cannot be decoded, or has other sides than the file says."""
    path = annotations.folder / picture.name
    try:
        image = decode(path.read_bytes())
    except (OSError, Undecodable) as error:
        raise UserError(f"{path}: {error}") from error
    high, wide = image.shape[1:]
    if (high, wide) != (picture.height, picture.width):
        raise UserError(
            f"{path} is {wide} x {high} pixels, {annotations.path.name} says "
            f"{picture.width} x {picture.height}"
        )
    return image


def target_of(annotations: Annotations, picture: Picture, *, masks: bool) -> Target:
    """What is to be found in it: all but crowds, boxes cut at the border."""
    limit = torch.tensor([picture.width, picture.height] * 2, dtype=torch.float32)
    things = [thing for thing in picture.things if not thing.crowd]
    boxes = torch.tensor([thing.box for thing in things], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clamp(min=0).minimum(limit)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    things = [thing for thing, keep in zip(things, kept.tolist(), strict=True) if keep]
    labels = torch.tensor([annotations.labels[t.category] for t in things], dtype=torch.int64)
    found = {"boxes": boxes[kept], "labels": labels}
    if masks:
        every = [np.zeros((0, picture.height, picture.width), np.uint8)]
        every += [mask(thing, picture)[None] for thing in things]
        found["masks"] = torch.from_numpy(np.concatenate(every))
    return found


def flipped(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Both seen in a mirror."""
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
    masks = {"masks": target["masks"].flip(-1)} if "masks" in target else {}
    return image.flip(-1), target | {"boxes": boxes} | masks


@dataclass(frozen=True)
class _Slots(Dataset[tuple[list[Tensor], list[Target]] | UserError]):
    """(step, slot) -> its images and targets."""

    annotations: Annotations
    pictures: Sequence[Picture]
    settings: Settings
    masks: bool

    def __getitem__(
        self, request: tuple[int, int]
    ) -> tuple[list[Tensor], list[Target]] | UserError:
        settings, order = self.settings, Order(len(self.pictures), self.settings.seed)
        positions = slot_positions(*request, settings.images_per_slot, settings.slots)
        images, targets = [], []
        try:
            for position in positions:
                picture = self.pictures[order.row(position)]
                image = image_of(self.annotations, picture)
                target = target_of(self.annotations, picture, masks=self.masks)
                if keyed(VIEWS, settings.seed, position).random() < FLIP:
                    image, target = flipped(image, target)
                images.append(image)
                targets.append(target)
        except UserError as error:  # as a value: workers lose its type
            return error
        return images, targets


def to_learn_from(
    annotations: Annotations, settings: Settings, *, masks: bool, steps: range, workers: int
) -> Iterator[tuple[int, list[Tensor], list[Target]]]:
    """(slot, images, targets) of this rank's slots of these steps, one after the other."""
    own = settings.slots // dist.world_size()
    slots = range(dist.rank() * own, (dist.rank() + 1) * own)
    requests = [(step, slot) for step in steps for slot in slots]
    dataset = _Slots(annotations, annotations.to_learn_from(), settings, masks)
    for (_, slot), found in zip(requests, loaded(dataset, requests, workers), strict=True):
        if isinstance(found, UserError):
            raise found
        yield slot, *found


@dataclass(frozen=True)
class _Images(Dataset[Tensor | UserError]):
    annotations: Annotations

    def __getitem__(self, place: int) -> Tensor | UserError:
        try:
            return image_of(self.annotations, self.annotations.pictures[place])
        except UserError as error:
            return error


def to_look_at(annotations: Annotations, workers: int) -> Iterator[tuple[Picture, Tensor]]:
    """This rank's pictures: every so many of all."""
    own = range(dist.rank(), len(annotations.pictures), dist.world_size())
    for place, found in zip(own, loaded(_Images(annotations), own, workers), strict=True):
        if isinstance(found, UserError):
            raise found
        yield annotations.pictures[place], found
