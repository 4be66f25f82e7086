"""The network of a run in one call."""

from pathlib import Path

from torch import nn

from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.export.extract import extract
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UsageError


def load(run: str | Path, size: str | Subnet | None = None, step: int | None = None) -> nn.Module:
    """What a run deploys, in eval mode, float32, on the CPU, without gradients.

    run: its output directory, or the folder of one teacher. size: a name of the recipe, WIDTHxDEPTH
    or a Subnet -> a plain network, images (B, 3, S, S) -> features (B, C) and forward_features;
    None: the elastic network, (images, subnet) -> tokens. step: of the evaluation (the newest).
    ValueError: the size is not in the space. UserError: there is no such run, or it is damaged.
    """
    model, _, _ = load_teacher(Path(run), step)
    if size is None:
        return model
    try:
        subnet = model.space.parse(size) if isinstance(size, str) else size
    except UsageError as error:
        raise ValueError(str(error)) from error
    return extract(model, subnet).network().requires_grad_(False)
