"""A run's folder that holds nothing but a teacher, as other commands and methods read it."""

from pathlib import Path

import torch

from poa_ds.checkpoint import deployed
from poa_ds.engine.networks import Networks
from poa_ds.methods.method import method
from poa_ds.recipe import load
from poa_ds.recipe.backbone import backbone

RECIPE = {
    "backbone": {
        "width": {"min": 32, "max": 48, "step": 16},
        "depth": {"min": 2, "max": 3, "step": 1},
        "patch_size": 8,
        "head_dim": 16,
        "layer_scale": 1.0,
        "init": "torch",
    },
    "crops": {"global_size": 32, "local_size": 16},
    "evaluation": {"crop": 32, "resize": 32},
}

HEADS = {"prototypes": [12, 8], "hidden": 24, "bottleneck": 8}


def make_teacher(run: Path, *, seed: int = 0, step: int = 3, **changed: dict) -> Path:
    """RUN with random weights as its teacher; the folder itself."""
    recipe = load.from_dict(RECIPE | changed)
    torch.manual_seed(seed)
    tensors = {f"backbone.{name}": t for name, t in backbone(recipe).state_dict().items()}
    deployed.publish(run, tensors, recipe, step)
    return run


def make_run_with_heads(run: Path, **changed: dict) -> tuple[Path, Networks]:
    """A run as training leaves it, and its networks."""
    recipe = load.from_dict({**RECIPE, **changed, "heads": HEADS | changed.get("heads", {})})
    networks = method(recipe).networks()
    for parameter in networks.parameters():  # biases too are told apart
        parameter.data += 0.1 * torch.randn(parameter.shape)
    deployed.publish(run, networks.teacher.state_dict(), recipe, 3)
    return run, networks
