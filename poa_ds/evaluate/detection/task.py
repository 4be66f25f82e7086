"""One `poa-ds eval detection`: a detector of each size trained, its findings scored.

RUN/detection/<letters of the task>/ holds what a stopped command goes on from (groups.py).
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from poa_ds.evaluate.detection import coco, pictures
from poa_ds.evaluate.detection.annotations import Annotations, Picture
from poa_ds.evaluate.detection.coco import Result
from poa_ds.evaluate.detection.model import Detecting, backbone_names, detector, drop_branches
from poa_ds.evaluate.detection.pyramid import Features
from poa_ds.evaluate.detection.settings import PREFIXES, Heads, Settings
from poa_ds.evaluate.detection.training import Training
from poa_ds.evaluate.feature_cache import Reader
from poa_ds.evaluate.groups import Groups
from poa_ds.evaluate.score_rows import ScoreRow, identity
from poa_ds.export.extract import extract
from poa_ds.model import architectures, form
from poa_ds.model import shape as shapes
from poa_ds.model.options import Backbone
from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Recipe
from poa_ds.system import dist
from poa_ds.system.progress import progress

KINDS: dict[coco.Kind, str] = {"bbox": "box", "segm": "mask"}


@dataclass(frozen=True)
class Task:
    """settings: of each size. autocast: the type of the backbone's products, or None: float32.

    boxes: no masks. protocol: every number that all sizes share.
    """

    reader: Reader
    settings: Mapping[Subnet, Settings]
    protocol: Mapping[str, Any]
    train: Annotations
    val: Annotations
    boxes: bool
    heads: Heads
    autocast: torch.dtype | None
    save_every: int

    @cached_property
    def groups(self) -> Groups:
        own = {str(size): repr(found) for size, found in self.settings.items()}
        own["weights"] = self.reader.weights
        folder = self.reader.folder.detection / identity({**self.protocol, **own})
        return Groups(folder, [*self.settings], lambda _: False)

    def run(self, asked: Sequence[int]) -> list[ScoreRow] | None:
        """The rows of all sizes; None where a signal came: the same task goes on from there."""
        return self.groups.run(partial(self._trained, asked=asked))

    def networks(self, size: Subnet) -> Detecting:
        """The detector of a size before it is trained; its new parts follow from the seed alone."""
        settings, recipe = self.settings[size], self.reader.recipe
        state = extract(self.reader.model, size)
        plain = state.network()
        drop_branches(plain, settings.drop_path)
        torch.manual_seed(settings.seed)
        student = detector(
            Features(plain, out=settings.channels, autocast=self.autocast),
            len(self.train.categories),
            boxes=self.boxes,
            heads=self.heads,
            short_sides=settings.short_sides,
            long_side=settings.long_side,
            mean=recipe.augmentation.mean,
            std=recipe.augmentation.std,
        )
        names = backbone_names(state, one_size(recipe, size), recipe.crops.global_size)
        return Detecting(student.train(), names, decay_depth(names.values()))

    def _trained(self, group: Sequence[Subnet], asked: Sequence[int]) -> list[ScoreRow] | None:
        [size], start = group, time.monotonic()
        settings, workers = self.settings[size], self.reader.workers
        steps = settings.steps(len(self.train.to_learn_from()))
        networks = self.networks(size)
        folder = self.groups.checkpoints
        training = Training(networks, self.reader.recipe, settings, steps=steps, folder=folder)
        slots = pictures.to_learn_from(
            self.train,
            settings,
            masks=not self.boxes,
            steps=range(training.state.step, steps),
            workers=workers,
        )
        if not training.run(slots, asked=asked, save_every=self.save_every):
            return None
        training.save()  # a kill while it is measured costs no training
        own = pictures.to_look_at(self.val, workers)
        count = -(-len(self.val.pictures) // dist.world_size())
        if dist.is_main():
            own = progress(own, total=count, label=f"detection {size}", unit="images")
        labels = self.train.labels
        results = found(networks.student.eval(), iter(own), labels, most=count, asked=asked)
        if results is None:
            return None
        every = [result for rank in dist.all_gather_objects(results) for result in rank]
        seconds = time.monotonic() - start
        rows = self._rows(size, every, seconds, asked) if dist.is_main() else []
        return None if dist.broadcast_object(rows is None) else rows

    def _rows(
        self, size: Subnet, results: Sequence[Result], seconds: float, asked: Sequence[int]
    ) -> list[ScoreRow] | None:
        """None: a signal came."""
        settings, rows = self.settings[size], []
        setting = {"lr": settings.lr, "layer decay": settings.layer_decay}
        setting |= {"drop path": settings.drop_path}
        for kind, word in KINDS.items():
            if kind == "segm" and self.boxes:
                continue
            scores = coco.scores(self.val, results, kind, asked=asked)
            if scores is None:
                return None
            for name, (value, error) in scores.items():
                rows.append(
                    ScoreRow(
                        kind="detection",
                        step=self.reader.step,
                        size=str(size),
                        metric=f"{PREFIXES[self.heads]}{word}_{name}{self.reader.floor}",
                        value=value,
                        error=error,
                        set="val",
                        chosen_by="",
                        setting=setting,
                        seconds=seconds,
                        protocol=self.protocol,
                        torch=torch.__version__,
                    )
                )
        return rows


def one_size(recipe: Recipe, size: Subnet) -> Backbone:
    """The options of a backbone that is this size alone, named as what its plain network is."""
    options = shapes.one_size(recipe.backbone, size)
    module = form.of(options.name).module
    name = next(n for n in architectures.ARCHITECTURES if form.of(n).module is module)
    return replace(options, name=name)


def decay_depth(names: Iterable[str]) -> int:
    """The d of layer-wise decay, of our names: see ElasticBackbone.decay_depth."""
    names = list(names)
    blocks = 1 + max(int(found[1]) for n in names if (found := re.match(r"blocks\.(\d+)\.", n)))
    return blocks if any(name.startswith("norm.") for name in names) else blocks - 1


@torch.no_grad()
def found(
    student: nn.Module,
    images: Iterator[tuple[Picture, Tensor]],
    labels: Mapping[int, int],
    *,
    most: int,
    asked: Sequence[int] = (),
) -> list[Result] | None:
    """What a detector in eval mode finds, as COCO's results have it. None: a signal came.

    An image at a time: padding depends on no neighbour. labels: number of a category -> the
    detector's. most: images of a rank at most. A collective.
    """
    numbers = {label: number for number, label in labels.items()}
    device, results = next(student.parameters()).device, []
    for _ in range(most):
        if dist.any_rank(bool(asked), device):
            return None
        if (pair := next(images, None)) is None:
            continue  # this rank has one image less
        picture, image = pair
        [one] = student([image.to(device).float() / 255])
        boxes = one["boxes"].cpu()
        boxes[:, 2:] -= boxes[:, :2]
        masks: list[dict] = [{}] * len(boxes)
        if "masks" in one:
            there = (one["masks"][:, 0] >= 0.5).cpu().numpy()
            masks = [{"segmentation": rle} for rle in coco.encode(there)] if len(boxes) else []
        parts = zip(boxes.tolist(), one["labels"].tolist(), one["scores"].tolist(), strict=True)
        for (box, label, score), rle in zip(parts, masks, strict=True):
            about = {"image_id": picture.id, "category_id": numbers[label]}
            results.append(about | {"bbox": box, "score": score} | rle)
    assert next(images, None) is None  # and the loader ends
    return results
