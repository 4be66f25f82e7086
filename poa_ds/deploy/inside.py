"""One size from Python: its state dict, and the folder that `poa-ds extract` writes of it."""

import argparse
import os
from pathlib import Path

import torch

from poa_ds.deploy import extract as command
from poa_ds.export import extract as plain
from poa_ds.export.folder import Style
from poa_ds.export.plain_state import PlainState
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UsageError
from poa_ds.system.paths import expanded


def extract(
    model: ElasticBackbone | str | os.PathLike,
    size: Subnet | str,
    dtype: torch.dtype = torch.float32,
    *,
    out: str | os.PathLike | None = None,
    format: Style | None = None,
    half: bool = False,
    dynamic_size: bool = False,
    check: bool = True,
) -> PlainState:
    """The state dict of one size as a plain network: the ViT's under timm's and DINOv2's names.

    The factors are folded in float32 (float64 for such a model), then all is cast to `dtype`. The
    final norm is part of it, the mask token is not. Swin: the names of swin/plain.py; ResNet:
    torchvision's, with group norms in the places of the batch norms. model: or the folder of a run;
    size: or its name. ValueError: the size is not in the space.

    out: a folder that is written too, of a run, with config and model card as `poa-ds extract`
    writes it. format: timm, hf, state-dict or onnx; timm where it can express the size, else
    state-dict. half: its weights in 16 bits. dynamic_size: an ONNX file for images of any sides.
    check: it is read back and compared with the elastic network. UserError: it cannot be so.
    """
    if not isinstance(model, ElasticBackbone):
        model = Path(expanded(os.fspath(model)))
    if out is not None:
        if isinstance(model, ElasticBackbone):
            raise UsageError("poa_ds.extract: out needs the folder of a run, not a network of it")
        command.run(
            argparse.Namespace(
                run=model,
                size=str(size),
                out=Path(expanded(os.fspath(out))),
                format=format,
                half=half,
                dynamic_size=dynamic_size,
                check=check,
                step=None,
                fold_layerscale=False,
                images=None,
            )
        )
    elif format or half or dynamic_size:
        raise UsageError(
            "poa_ds.extract: format, half and dynamic_size are of a folder: name `out`"
        )
    return plain.extract(model, size, dtype)
