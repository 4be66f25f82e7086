"""The heads of some sizes in training on several ranks, and what they predict.

A step takes two reductions: of the sums of which the norms' mean and variance follow, and of the
gradients. Both are summed in float64, so that any number of ranks learns the same to rounding.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from poa_ds.data.batch import Bad
from poa_ds.evaluate import checkpoints
from poa_ds.evaluate.knn_protocol import Encoder
from poa_ds.evaluate.segmentation import windows
from poa_ds.evaluate.segmentation.heads import Heads, Schedule
from poa_ds.evaluate.segmentation.masks import IGNORED
from poa_ds.evaluate.segmentation.pairs import Block, Whole
from poa_ds.evaluate.segmentation.scores import counted
from poa_ds.system import dist

BYTES = 1 << 29  # of one head's scores of all pixels, in learning


class Training:
    """encode: uint8 crops to the maps of each of the heads, in their order."""

    def __init__(
        self, heads: Sequence[Heads], encode: Encoder, schedule: Schedule, device: torch.device
    ) -> None:
        self.heads, self.encode, self.device = heads, encode, device
        self.schedule, self.steps = schedule, schedule.steps

    def run(
        self,
        batches: Iterable[list[Block]],
        *,
        first: int,
        folder: Path,
        save_every: int,
        asked: Sequence[int],
    ) -> bool:
        """Learn from these batches, from step `first` on; False where a signal came: it is saved.

        A collective.
        """
        finished = checkpoints.learn(
            batches,
            self.learn,
            partial(self.save, folder),
            steps=range(first, self.steps),
            save_every=save_every,
            asked=asked,
            device=self.device,
        )
        if finished and first < self.steps:
            self.save(folder, self.steps)  # measuring takes long too
        return finished

    @torch.no_grad()
    def learn(self, step: int, blocks: list[Block]) -> None:
        """A step on a batch, of which this rank has some blocks. A collective."""
        chunks = _chunks(blocks, self.heads[0].classes)
        maps = [self.encode(images.to(self.device)) for images, _ in chunks]
        masks = [mask.to(self.device).long() for _, mask in chunks]
        pixels, places, sums = self._sums(maps, masks)
        part = self.schedule.share(step)
        normal = [h.see(s, places) for h, s in zip(self.heads, sums, strict=True)]
        own = [torch.zeros(h.numbers, dtype=torch.float64, device=self.device) for h in self.heads]
        for of_chunk, mask in zip(maps, masks, strict=True):
            for heads, total, x, (mean, root) in zip(
                self.heads, own, of_chunk, normal, strict=True
            ):
                total += heads.gradients((x.float() - mean) * root, mask, pixels)
        total = dist.all_sum(torch.cat(own))
        for heads, gradients in zip(
            self.heads, total.split([h.numbers for h in self.heads]), strict=True
        ):
            heads.learn(gradients, part, self.schedule.weight_decay)

    def _sums(self, maps: list[list[Tensor]], masks: list[Tensor]) -> tuple[int, int, list[Tensor]]:
        """(pixels with a class, one at least; places; sums (2, C) of each size), of all ranks."""
        known = sum(int((mask != IGNORED).sum()) for mask in masks)
        places = sum(of_chunk[0].shape[:-1].numel() for of_chunk in maps)
        widths = [heads.mean.numel() for heads in self.heads]
        sums = [torch.zeros(2, width, dtype=torch.float64, device=self.device) for width in widths]
        for of_chunk in maps:
            for total, x in zip(sums, of_chunk, strict=True):
                flat = x.double().flatten(0, -2)
                total += torch.stack((flat.sum(0), flat.square().sum(0)))
        counts = torch.tensor([known, places], dtype=torch.float64, device=self.device)
        every = dist.all_sum(torch.cat([counts, *(total.flatten() for total in sums)]))
        known, places = map(int, dist.on_host(every[:2]))
        found = every[2:].split([2 * width for width in widths])
        return max(known, 1), places, [x.view(2, -1) for x in found]

    def save(self, folder: Path, step: int) -> None:
        """By the main rank. A collective."""
        parts = {heads.name: heads.state() for heads in self.heads} if dist.is_main() else {}
        checkpoints.save(folder, step, parts)

    def resume(self, folder: Path) -> int:
        """The step that was saved, 0 for none. A collective."""
        return checkpoints.resume(folder, self.device, {h.name: h.load for h in self.heads})

    @torch.no_grad()
    def counts(
        self,
        images: Iterator[Whole | Bad],
        number: int,
        chosen: Mapping[str, Sequence[int]],
        *,
        crop: int,
        stride: int,
        batch: int,
        asked: Sequence[int],
    ) -> tuple[dict[tuple[str, int], Tensor], list[Bad]] | None:
        """((name of heads, number of a rate) -> (images, 3, K) int32, damaged ones).

        None: a signal came. images: every so many-th of `number`, of this rank. chosen: the rates
        of each heads. batch: crops at a time. A collective.
        """
        found = {
            (heads.name, rate): np.zeros((number, 3, heads.classes), np.int32)
            for heads in self.heads
            for rate in chosen[heads.name]
        }
        bad: list[Bad] = []
        for first in range(0, number, dist.world_size()):
            if dist.any_rank(bool(asked), self.device):
                return None
            row = first + dist.rank()
            if row >= number:
                continue
            image = next(images)
            if not isinstance(image, Whole):
                bad.append(image)
                continue
            for key, one in self._counts_of(image, chosen, crop, stride, batch):
                found[key][row] = one.cpu().numpy()
        assert next(images, None) is None  # and the loader ends
        every = {
            key: dist.all_sum(torch.from_numpy(x).to(self.device)).cpu() for key, x in found.items()
        }
        return every, [one for part in dist.all_gather_objects(bad) for one in part]

    def _counts_of(
        self, image: Whole, chosen: Mapping[str, Sequence[int]], crop: int, stride: int, batch: int
    ) -> Iterator[tuple[tuple[str, int], Tensor]]:
        where = windows.places(*image.image.shape[-2:], crop, stride)
        crops = windows.cut(image.image, where, crop)
        parts = [self.encode(part.to(self.device)) for part in crops.split(batch)]
        true = image.mask.to(self.device)
        for heads, maps in zip(self.heads, zip(*parts, strict=True), strict=True):
            scores = torch.cat([heads.scores(x.float()) for x in maps])
            for rate in chosen[heads.name]:
                classes = windows.predicted(
                    scores[:, rate], where, crop=crop, size=image.size, true_size=true.shape
                )
                yield (heads.name, rate), counted(classes, true, heads.classes)


def _chunks(blocks: list[Block], classes: int) -> list[Block]:
    """The images of these blocks, as many together as memory holds scores of their pixels."""
    if not blocks:
        return []
    images, masks = map(torch.cat, zip(*blocks, strict=True))
    many = max(1, BYTES // (4 * classes * masks[0].numel()))
    return list(zip(images.split(many), masks.split(many), strict=True))
