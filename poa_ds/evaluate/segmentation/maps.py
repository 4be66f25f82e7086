"""What a frozen network says of each place of an image, in rows and columns."""

import argparse
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from poa_ds.evaluate.features import TAPS, tapped
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UsageError

LAST, DENSE4 = "last", "dense4"
STAGES = "stages "  # followed by their numbers


def dense4(depth: int) -> list[int]:
    """Numbers of the blocks that POA's dense tasks read: 3, 5, 7 and 11 of 12, in proportion."""
    return sorted({max(round(depth * part / 12) - 1, 0) for part in (4, 6, 8, 12)})


def stages(text: str) -> tuple[int, ...]:
    """Numbers of stages from an option, in their order."""
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not {*found} <= {1, 2, 3, 4}:
        raise argparse.ArgumentTypeError(f"{text!r}: such as 1,2,3,4")
    return found


def maps(model: ElasticBackbone, images: Tensor, subnet: Subnet, *, taps: str) -> Tensor:
    """(B, rows, columns, width) of normalised float images (B, 3, S, S), behind the last norm.

    taps: LAST, the blocks of DENSE4 or `features.TAPS`, one behind the other, or STAGES with
    numbers, whose maps are brought to the side of the second one's (stride 8 at patches of 4).
    """
    if taps.startswith(STAGES):
        return _of_stages(model.stage_maps(images, subnet), stages(taps.removeprefix(STAGES)))
    if taps == LAST:
        tokens = model(images, subnet)[:, 1:]
    else:
        found = model.taps(images, subnet, blocks(model, subnet, taps))
        tokens = torch.cat([tokens[:, 1:] for tokens in found], -1)
    side = math.isqrt(tokens.shape[1])
    grid = rearrange(tokens, "n (r k) c -> n r k c", r=side)
    return grid[:, :: model.copies, :: model.copies]


def _of_stages(every: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    side = every[1].shape[-2:]
    chosen = [every[number - 1] for number in numbers]
    alike = [F.interpolate(x, side, mode="bilinear", align_corners=False) for x in chosen]
    return rearrange(torch.cat(alike, 1), "n c r k -> n r k c")


def width(model: ElasticBackbone, subnet: Subnet, taps: str) -> int:
    """Channels of the maps."""
    if taps.startswith(STAGES):
        every = model.stage_widths(subnet)
        return sum(every[number - 1] for number in stages(taps.removeprefix(STAGES)))
    many = 1 if taps == LAST else len(blocks(model, subnet, taps))
    return many * model.feature_width(subnet)


def blocks(model: ElasticBackbone, subnet: Subnet, taps: str) -> list[int]:
    """Numbers of the blocks of this size that are read out."""
    if taps == DENSE4:
        return dense4(len(model.members(subnet)))
    return tapped(model, subnet, taps)


def asked_for(model: ElasticBackbone, taps: str, args: argparse.Namespace) -> str:
    """What is read: --stages, or else `taps`. UsageError: the backbone has no such thing."""
    if args.stages and not model.reads_stages:
        raise UsageError(f"--stages: a {model.kind} has none; --taps names blocks")
    if args.stages and args.taps:
        raise UsageError("--taps and --stages: one of them")
    taps = f"{STAGES}{','.join(map(str, args.stages))}" if args.stages else taps
    if taps in (DENSE4, *TAPS) and not model.reads_blocks:
        raise UsageError(f"--taps {taps}: a {model.kind} is read out by --stages 1,2,3,4")
    return taps
