"""The online probe: a linear classifier learns, beside the training, what its teacher says anyway.

No weight, no random number and no loss of the training feels it: it reads targets that every step
has made, with a generator and an optimizer of its own (docs/evaluation.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.data.places import Folder
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.mixture import Mixture
from poa_ds.methods.method import Method, Showing
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Online, Recipe
from poa_ds.system import dist
from poa_ds.system.errors import UsageError, UserError

MOMENTUM = 0.9
FIRST_STD = 0.01  # of the weights at the start
PREFIX = "online."  # of its tensors in a checkpoint
KEY = "evaluation.online.labels"


class Answered(NamedTuple):
    """How many crops of all ranks had a label, and of how many it was the largest score; scalars
    on their device.
    """

    right: Tensor
    labelled: Tensor


class Probe:
    """Scores x @ weights[:, :-1].T + weights[:, -1] of features x (R, C), and SGD with momentum.

    weights (K, C + 1), velocity alike: fp32, the same on all ranks.
    """

    def __init__(
        self, options: Online, *, classes: int, channels: int, seed: int, device: torch.device
    ) -> None:
        self.options = options
        generator = torch.Generator().manual_seed(seed)
        weights = torch.zeros(classes, channels + 1)
        weights[:, :-1].normal_(std=FIRST_STD, generator=generator)
        self.weights, self.velocity = weights.to(device), torch.zeros_like(weights, device=device)

    def learns_in(self, step: int) -> bool:
        """Whether the step after so many steps is one of its own."""
        return (step + 1) % self.options.every_steps == 0

    @torch.no_grad()
    def learn(self, features: Tensor, labels: Tensor) -> Answered:
        """One step on rows (R, C) of this rank with labels (R,), -1 for none; what it had answered
        before. A collective.
        """
        right, labelled, gradient = self._sums(features.float(), labels)
        sums = torch.cat((torch.stack((right, labelled)), gradient.flatten()))
        sums = dist.all_sum(sums)
        right, labelled = sums[:2].clone()
        gradient = sums[2:].view_as(self.weights) / labelled.clamp_min(1)
        moved = MOMENTUM * self.velocity + gradient
        # on the device: without any label all stays as it is
        self.velocity = torch.where(labelled > 0, moved, self.velocity)
        self.weights = self.weights - self.options.lr * (labelled > 0) * self.velocity
        return Answered(right, labelled)

    def _sums(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows that are right, rows with a label, gradient of their summed cross entropy)."""
        rows = F.pad(features, (0, 1), value=1.0)
        known = (labels >= 0).float()
        scores = rows @ self.weights.T
        error = scores.softmax(1) * known[:, None]
        error.scatter_add_(1, labels.clamp_min(0)[:, None], -known[:, None])
        return (scores.argmax(1) == labels).float().sum(), known.sum(), error.T @ rows

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it, by name."""
        return {f"{PREFIX}weights": self.weights, f"{PREFIX}velocity": self.velocity}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there. UserError: it is of other classes."""
        if (stored := state[f"{PREFIX}weights"].shape) != self.weights.shape:
            raise UserError(
                f"{KEY}: the checkpoint's classifier is of {stored[0]} classes, data.train has"
                f" {len(self.weights)} now; another output_dir begins anew"
            )
        self.weights, self.velocity = state[f"{PREFIX}weights"], state[f"{PREFIX}velocity"]


def rows(
    method: Showing, batches: Sequence[Batch], targets: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    """(features (R, C), labels (R,)) of the global crops of all slots of this rank."""
    features = torch.cat([method.features(target) for target in targets])
    labels = torch.cat([batch.labels.repeat(batch.views) for batch in batches])  # crop-major
    return features, labels


def classes(recipe: Recipe, folder: Folder, method: Method) -> int:
    """How many the recipe's probe tells apart; 0: it asks for none.

    UsageError: the method has nothing to show it, or the images have no classes.
    """
    if not recipe.evaluation.online.labels:
        return 0
    if not isinstance(method, Showing):
        raise UsageError(
            f"{KEY} true: objective.method {recipe.objective.method} has no teacher whose features"
            " it could read, remove it"
        )
    there = sum(map(_seen, folder.folders if isinstance(folder, Mixture) else [folder]))
    if there < 2:
        raise UsageError(
            f"{KEY} true: the images of data.train {folder.path} are of {there} classes, and a"
            " classifier needs two at least: give images with their classes, or remove it"
        )
    return len(folder.classes)


def _seen(folder: ShardFolder) -> int:
    """How many classes its images are of; there may be names of more."""
    found = np.unique(folder.index["label"])
    return int((found >= 0).sum())


def of_recipe(recipe: Recipe, classes: int, device: torch.device) -> Probe | None:
    """The probe of a run on images of so many classes, where the recipe asks for one."""
    if not recipe.evaluation.online.labels:
        return None
    return Probe(
        recipe.evaluation.online,
        classes=classes,
        channels=derived.shape(recipe).features(derived.space(recipe).intact),
        seed=recipe.seed,
        device=device,
    )
