"""Names of ResNets elsewhere: the published code's, the plain module's and timm's."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import Tensor


def from_published(state: Mapping[str, Tensor], stages: Sequence[int]) -> dict[str, Tensor]:
    """The published ResNet's state dict (with or without `backbone.`) under our names.

    stages: blocks of each. Keys of other parts (heads) are left out.
    """
    firsts = [0, *accumulate(stages)]
    prefixed = any(name.startswith("backbone.") for name in state)
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if prefixed and not name.startswith("backbone."):
            continue
        name = name.removeprefix("backbone.")
        if found := re.match(r"layer(\d)\.layers\.(\d+)\.(.+)", name):
            place = firsts[int(found[1]) - 1] + int(found[2])
            ours[f"blocks.{place}.{found[3].replace('.conv.', '.')}"] = tensor
        else:
            ours["embed." + re.sub(r"^(conv|norm)1\.", r"\1.", name)] = tensor
    return ours
