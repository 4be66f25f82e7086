"""States of the published POA code under our names, and the way back; nothing is half-renamed."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from poa_ds.checkpoint.deployed import differences, shapes
from poa_ds.model import form
from poa_ds.model.architectures import ARCHITECTURES
from poa_ds.model.options import Backbone

HEADS = ("dino_head.", "ibot_head.")


def from_published(
    state: Mapping[str, Tensor], *, kind: str, head_dim: int = Backbone.head_dim
) -> dict[str, Tensor]:
    """The published backbone's state dict under our names and layout.

    state: of a teacher with heads (they are left out), or of the backbone alone. kind: vit, swin
    or resnet. head_dim: channels of a head, which a ViT's tensors do not tell.
    ValueError: another kind of network, or a tensor that is missing, left over or of another shape.
    """
    own = _backbone(state)
    found = form.of(_known(kind))
    try:
        with torch.device("meta"):
            model = found.network_of(own, head_dim)
    except (KeyError, ValueError) as error:
        raise ValueError(f"no published state of kind {kind!r}: {described(state)}") from error
    ours = found.from_published(own, model.shape)
    problems = differences(shapes(model.state_dict()), shapes(ours))
    if problems:
        what = f"no published state of kind {kind!r} with heads of {head_dim} channels"
        raise ValueError(f"{what} ({described(state)}): {'; '.join(problems)}")
    return ours


def to_published(
    state: Mapping[str, Tensor], *, kind: str, head_dim: int = Backbone.head_dim
) -> dict[str, Tensor]:
    """Our backbone's state dict under the published names and layout, complete.

    Norms that the published Swin has and no pre-training uses are as at its start.
    """
    return form.of(_known(kind)).to_published(state, head_dim)


def _known(kind: str) -> str:
    kinds = [name for name in ARCHITECTURES if form.of(name).published_block]
    if kind not in kinds:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(kinds)}")
    return kind


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the backbone without `module.` and `backbone.`."""
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    own = {name: tensor for name, tensor in plain.items() if not name.startswith(HEADS)}
    if all(name.startswith("backbone.") for name in own):
        return {name.removeprefix("backbone."): tensor for name, tensor in own.items()}
    return own


def heads_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def heads_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `heads_from_published`, without a prefix."""
    deep = any(".rest." in name for name in state)  # a head of one layer has no numbers inside
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        head, part, *rest = name.split(".")
        if part == "first":
            theirs[f"mlp{head}.{'0.' if deep else ''}linear.{rest[0]}"] = tensor
        elif part == "rest":
            theirs[f"mlp{head}.{2 * int(rest[0]) + 2}.{rest[1]}"] = tensor
        else:
            theirs[f"last_layer{head}.{part}"] = tensor
    return theirs


def described(state: Mapping[str, Tensor]) -> str:
    """What the published tensors seem to be."""
    plain = _backbone(state)
    forms = [f for f in map(form.of, ARCHITECTURES) if f.published_block]
    titles = [f.title for f in forms if any(re.match(f.published_block, name) for name in plain)]
    if not titles:
        return f"they are no network of POA (names such as {', '.join(list(plain)[:3])})"
    blocks = {m[1] for name in plain if (m := re.match(r"blocks\.((?:\d+\.)+)", name))}
    patch = plain.get("patch_embed.proj.weight")
    size = (
        f" {len(patch)}x{len(blocks)}, patch {patch.shape[-1]}"
        if blocks and patch is not None
        else ""
    )
    prototypes = [len(t) for name, t in state.items() if name.endswith(".weight_g")]
    heads = f"heads {prototypes}" if prototypes else "no heads"
    return f"they are a {titles[0]}{size}, {heads}"
