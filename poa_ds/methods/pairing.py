"""Who meets whom, written once for both ways of making cross-entropies (whole matrices, by rows).

A view of a student meets the teacher's crops of the same image, but not its own (POA eq. 6-8).
A masked patch meets the teacher's patch at its place, and a smaller student's view the same view of
the intact student (eq. 9). All pairs of one kind weigh the same.
"""

import torch
from torch import Tensor

from poa_ds.system.transfer import send

CROPS = 2  # that the teacher sees


def met(view: int) -> tuple[int, ...]:
    """The teacher's crops that a view of a student meets; views 0 and 1 are those crops."""
    return tuple(crop for crop in range(CROPS) if crop != view)


def count(views: int) -> int:
    """Pairs (view, crop) of one image: 2 + 2L for L local crops."""
    return sum(len(met(view)) for view in range(views))


def rows_met(images: int, views: int, device: torch.device) -> Tensor:
    """(views x images, 2) int32: the teacher's rows that each row of a student meets; -1: none.

    Rows are crop-major on both sides: view 0 of all images, view 1 of all images, ...
    """
    crops = [[*met(view), -1][:CROPS] for view in range(views)]
    crop, image = torch.tensor(crops, dtype=torch.int32)[:, None], torch.arange(images)[:, None]
    table = torch.where(crop < 0, -1, crop * images + image).int()
    return send(table.flatten(0, 1), device)  # one transfer instead of kernels of some numbers
