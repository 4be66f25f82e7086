"""What shard folders and streams share: one image's crops, and the limit of damaged images."""

import math
import random
from collections.abc import Iterable, Iterator

from torch import Tensor

from poa_ds.data.batch import Bad, Batch, Sample
from poa_ds.data.image.photometric import GLOBAL_1, GLOBAL_2, LOCAL, draw
from poa_ds.data.image.views import Views, views
from poa_ds.data.spec import BatchSpec
from poa_ds.data.store.index import SampleError
from poa_ds.system.errors import UserError


def prepared(
    spec: BatchSpec, image: Tensor, rng: random.Random, *, position: int, label: int
) -> Sample:
    """The image's crops and their colours, drawn from its own generator."""
    if spec.labelled:
        crop = spec.labelled(image, rng)[None]
        return Sample(Views(crop, crop[:0]), [], position, label)
    kinds = (GLOBAL_1, GLOBAL_2, *[LOCAL] * spec.crops.local_count)
    draws = [draw(rng, spec.photometric, kind) for kind in kinds]
    return Sample(views(image, spec.crops, rng), draws, position, label)


def bounded(batches: Iterable[Batch | UserError], spec: BatchSpec, images: int) -> Iterator[Batch]:
    """The batches; UserError with the first error among them, or after too many bad images."""
    allowed = math.ceil(spec.max_bad_fraction * images)
    bad: set[Bad] = set()
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        bad.update(batch.bad)
        if len(bad) > allowed:
            raise UserError(
                f"{len(bad)} damaged images are more than data.max_bad_fraction "
                f"{spec.max_bad_fraction} of {images} ({allowed}); the last: "
                f"{SampleError(*batch.bad[-1])}"
            )
        yield batch
