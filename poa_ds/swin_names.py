"""Names and layouts of Swin elsewhere: the published code's, the plain module's and timm's."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import Tensor

from poa_ds.layers import head_major

_PARTS = (
    (r"^mask_token$", "embed.mask_token"),
    (r"^patch_embed\.", "embed.patch."),
    (r"\.relative_position_bias_table$", ".position_bias"),
    (r"\.w_msa\.", "."),
    (r"\.ffn\.", ".mlp."),
    (r"\.(norm\d?)\.norm\.", r".\1."),
    (r"^norm3\.(norm\.)?", "norm."),
    (r"\.linear\.", "."),
)
# of the stages before the last: pre-training neither uses nor moves them; and what we compute
_UNUSED = re.compile(r"^norm[012]\.|\.relative_position_index$")


def from_published(
    state: Mapping[str, Tensor], stages: Sequence[int], head_dim: int
) -> dict[str, Tensor]:
    """The published Swin's state dict (with or without `backbone.`) under our names and layout.

    stages: blocks of each. Keys of other parts (heads) are left out.
    """
    firsts = [0, *accumulate(stages)]
    prefixed = any(name.startswith("backbone.") for name in state)
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if prefixed and not name.startswith("backbone."):
            continue
        name = name.removeprefix("backbone.")
        if _UNUSED.search(name):
            continue
        if found := re.match(r"stages\.(\d)\.blocks\.(\d+)\.(.+)", name):
            name = f"blocks.{firsts[int(found[1])] + int(found[2])}.{found[3]}"
        elif found := re.match(r"stages\.(\d)\.downsample\.(.+)", name):
            name = f"blocks.{firsts[int(found[1]) + 1]}.merge.{found[2]}"
        for pattern, replacement in _PARTS:
            name = re.sub(pattern, replacement, name)
        ours[name] = head_major(tensor, head_dim) if ".attn.qkv." in name else tensor
    return ours
