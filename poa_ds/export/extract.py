"""One size of an elastic network as a plain model of its own.

An elastic linear layer multiplies its input by max width / width; here that factor moves into the
weight, in float32, so that a plain network computes the same.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.export.plain_state import PlainState
from poa_ds.model import form
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UsageError

BEFORE_SCALE = {"ls1": "attn.proj", "ls2": "mlp.fc2"}  # the layer that each LayerScale follows


def extract(
    model: ElasticBackbone | str | Path,
    subnet: Subnet | str,
    dtype: torch.dtype = torch.float32,
) -> PlainState:
    """The state dict of one size as a plain network: the ViT's under timm's and DINOv2's names.

    The factors are folded in float32 (float64 for such a model), then all is cast to `dtype`. The
    final norm is part of it, the mask token is not. Swin: the names of swin/plain.py; ResNet:
    torchvision's, with group norms in the places of the batch norms. model: or the folder of a run;
    subnet: or its name. ValueError: the size is not in the space.
    """
    if isinstance(model, str | Path):
        model, _, _ = load_teacher(Path(model))
    if isinstance(subnet, str):
        try:
            subnet = model.space.parse(subnet)
        except UsageError as error:
            raise ValueError(str(error)) from error
    model.space.require(subnet)
    found = form.of(model.kind)
    state = found.extract(model, subnet, dtype)
    _, arguments = found.arguments(model.shape, subnet, state)
    return PlainState(state, kind=model.kind, arguments=arguments)


def fold_layer_scale(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same network without LayerScale: its factors go into the layer before."""
    folded = {name: t for name, t in state.items() if not name.endswith(".gamma")}
    for name, gamma in state.items():
        if name.endswith(".gamma"):
            block, scale, _ = name.rsplit(".", 2)
            layer = f"{block}.{BEFORE_SCALE[scale]}"
            folded[f"{layer}.weight"] = folded[f"{layer}.weight"] * gamma[:, None]
            folded[f"{layer}.bias"] = folded[f"{layer}.bias"] * gamma
    return folded
