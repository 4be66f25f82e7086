"""Names and layouts of the published POA code and of timm, to ours and back.

Ours differs in one layout: the rows of qkv are stored head by head (head, q|k|v, channel),
elsewhere q|k|v first (q|k|v, head, channel).
"""

import re
from collections.abc import Mapping

from torch import Tensor

# (published pattern, ours): longest first where one contains another
_BACKBONE = (
    (r"^(cls_token|pos_embed|mask_token)$", r"embed.\1"),
    (r"^patch_embed\.proj\.", "embed.patch."),
    (r"\.(norm[12])\.norm\.", r".\1."),
    (r"^norm\.norm\.", "norm."),
    (r"\.linear\.", "."),
)


def from_poa_backbone(state: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """The published ViT's state dict (with or without `backbone.`) under our names and layout.

    Keys of other parts (heads) are left out. Also reads DINOv2 and timm names, and block
    numbers in chunks (blocks.<chunk>.<i>).
    """
    ours: dict[str, Tensor] = {}
    prefixed = any(name.startswith("backbone.") for name in state)
    for name, tensor in state.items():
        if prefixed and not name.startswith("backbone."):
            continue
        name = name.removeprefix("backbone.")
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        for pattern, replacement in _BACKBONE:
            name = re.sub(pattern, replacement, name)
        ours[name] = head_major(tensor, head_dim) if ".attn.qkv." in name else tensor
    return ours


def from_poa_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published MDINOHead's state dict (any prefix before `mlp0`) under our names."""
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = re.search(r"(?:^|\.)(mlp|last_layer)(\d+)\.(.+)$", name)
        if not found or name.startswith("backbone."):
            continue
        kind, head, rest = found.groups()
        ours[f"{head}.{_head_part(kind, rest)}"] = tensor
    return ours


def _head_part(kind: str, rest: str) -> str:
    """weight_g stays; mlp part 0.linear.weight -> first.weight; 2.bias -> rest.0.bias."""
    if kind == "last_layer":
        return rest
    rest = rest.replace("linear.", "")
    place, _, parameter = rest.rpartition(".")
    if place in ("", "0"):
        return f"first.{parameter}"
    return f"rest.{int(place) // 2 - 1}.{parameter}"


def head_major(qkv: Tensor, head_dim: int) -> Tensor:
    """Rows (q|k|v, head, channel) -> (head, q|k|v, channel). Weight (3C, in) or bias (3C,)."""
    return qkv.unflatten(0, (3, -1, head_dim)).transpose(0, 1).flatten(0, 2).contiguous()


def third_major(qkv: Tensor, head_dim: int) -> Tensor:
    """The inverse of `head_major`."""
    return qkv.unflatten(0, (-1, 3, head_dim)).transpose(0, 1).flatten(0, 2).contiguous()
