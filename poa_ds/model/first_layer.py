"""A first layer for images of another number of channels than it was trained on.

The rule is that of timm's in_chans: one channel gets the sum of the weights, so that it says of a
grey image what the whole said of its three copies; several get them in turns, by 3 / channels.
"""

from collections.abc import Mapping

from torch import Tensor

from poa_ds.model.options import COLOURS
from poa_ds.system.errors import UserError


def of(state: Mapping[str, Tensor]) -> str:
    """The name of the weight that images meet, in the state of a network in its own order."""
    return next(name for name, t in state.items() if t.ndim == 4 and t.shape[-1] > 1)


def adapted(weight: Tensor, channels: int) -> Tensor:
    """The weight (out, before, rows, columns) for so many channels, in its own type.

    UserError: `before` is another number than 1 or 3, whose channels have no order to repeat.
    """
    before = weight.shape[1]
    if before == channels:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    if before not in (1, COLOURS):
        raise UserError(
            f"its first layer takes {before} channels: that of 1 or {COLOURS} can be made one of"
            f" {channels}, no other"
        )
    turns = weight.repeat(1, -(-channels // before), 1, 1)[:, :channels]
    return turns * (before / channels)


def described(before: int, channels: int) -> str:
    """What `adapted` did, in words; empty: nothing."""
    if before == channels:
        return ""
    how = "its sum" if channels == 1 else f"in turns, by {before}/{channels}"
    rule = ", as timm does" if before == COLOURS else ""
    return f"first layer of {before} channels made one of {channels} ({how}{rule})"
