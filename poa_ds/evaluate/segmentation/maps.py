"""What a frozen network says of each place of an image, in rows and columns."""

import math

import torch
from einops import rearrange
from torch import Tensor

from poa_ds.evaluate.features import TAPS, tapped
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UsageError

LAST = "last"


def maps(model: ElasticBackbone, images: Tensor, subnet: Subnet, *, taps: str) -> Tensor:
    """(B, rows, columns, width) of normalised float images (B, 3, S, S), behind the last norm.

    taps: LAST, or the blocks of `features.TAPS`, one behind the other.
    """
    if taps == LAST:
        tokens = model(images, subnet)[:, 1:]
    else:
        found = model.taps(images, subnet, tapped(model, subnet, taps))
        tokens = torch.cat([tokens[:, 1:] for tokens in found], -1)
    side = math.isqrt(tokens.shape[1])
    grid = rearrange(tokens, "n (r k) c -> n r k c", r=side)
    return grid[:, :: model.copies, :: model.copies]


def width(model: ElasticBackbone, subnet: Subnet, taps: str) -> int:
    """Channels of the maps."""
    many = 1 if taps == LAST else len(tapped(model, subnet, taps))
    return many * model.feature_width(subnet)


def check_taps(model: ElasticBackbone, taps: str) -> None:
    """UsageError: the backbone cannot be read out behind these blocks."""
    if taps in TAPS and not model.reads_blocks:
        raise UsageError(f"--taps {taps}: a {model.kind} is read out behind its last block alone")
