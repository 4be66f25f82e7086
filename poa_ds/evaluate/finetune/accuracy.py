"""How many images of a set a fine-tuned network names rightly; ranks share them out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from poa_ds.data.batch import Bad
from poa_ds.data.loader import eval_batches
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate.classes import UNKNOWN
from poa_ds.evaluate.features import Readout
from poa_ds.evaluate.finetune.images import Asked
from poa_ds.evaluate.neighbours import Deal
from poa_ds.model.classifier import Classified
from poa_ds.recipe.tree import Evaluation
from poa_ds.system import dist


@dataclass(frozen=True)
class Counts:
    """(classes,) int64 each: images of a class, and those of them that were named rightly.

    damaged: images that others stand for.
    """

    right: Tensor
    images: Tensor
    damaged: int = 0

    @property
    def top1(self) -> float:
        """In percent of all images."""
        return 100 * int(self.right.sum()) / max(int(self.images.sum()), 1)

    @property
    def mean_per_class(self) -> float:
        """The mean over the classes of their own accuracies, in percent."""
        there = self.images > 0
        return float(100 * (self.right[there] / self.images[there]).mean())


@torch.inference_mode()
def counted(
    network: Classified,
    asked: Asked,
    options: Evaluation,
    readout: Readout,
    *,
    batches: Callable[..., Iterable] = lambda items, **_: items,
) -> Counts:
    """Of the images that are asked for.

    batches: wraps what goes over this rank's batches. A collective.
    """
    classes, device = network.classifier.out_features, readout.device
    counts = torch.zeros(2, classes, dtype=torch.int64, device=device)
    bad: list[Bad] = []
    deal = Deal(len(asked.numbers), options.batch_size)
    spans = deal.own()
    encode = readout.encoder(network, [network.size], lambda model, images, _: model(images))
    found = _blocks(asked.folder, asked.numbers, spans, options, readout, bad)
    for images, labels in batches(
        found, total=len(spans), label="accuracy on the images of val", unit="batch"
    ):
        scores = encode(images.to(device))[0].float()
        wanted = torch.where(labels < 0, UNKNOWN, asked.classes[labels])
        known = wanted != UNKNOWN  # a substitute may have no class
        wanted, scores = wanted[known].to(device), scores[known.to(device)]
        right = (scores.argmax(1) == wanted).long()
        counts[0].index_add_(0, wanted, right)
        counts[1].index_add_(0, wanted, torch.ones_like(right))
    counts = dist.all_sum(counts)
    damaged = {entry for rank in dist.all_gather_objects(bad) for entry in map(tuple, rank)}
    right, images = counts.cpu()
    return Counts(right, images, len(damaged))


def _blocks(
    folder: ShardFolder,
    numbers: np.ndarray,
    spans: Iterable[range],
    options: Evaluation,
    readout: Readout,
    bad: list[Bad],
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of this rank's spans: block by block, whatever the number of ranks."""
    own = [numbers[span.start : span.stop] for span in spans]
    if own:
        yield from eval_batches(
            folder,
            np.concatenate(own),
            resize=options.resize,
            crop=options.crop,
            batch_size=options.batch_size,
            workers=readout.workers,
            bad=bad,
        )
