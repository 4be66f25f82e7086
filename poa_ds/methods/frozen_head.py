"""Prototype head 0 of a run's network, without its prototypes.

A teacher may embed with it, and a classifier stand on its first layer.
"""

from itertools import pairwise
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from poa_ds.checkpoint.deployed import differences, shapes
from poa_ds.model.heads import PrototypeHead
from poa_ds.model.layers import scale_inputs
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError
from poa_kernels.slices import alpha

NAME = "heads.0."
PROTOTYPES = ("weight_g", "weight_v")


def built(recipe: Recipe) -> PrototypeHead:
    """With random weights, and one prototype that nobody looks at."""
    options = recipe.heads
    head = PrototypeHead(
        derived.shape(recipe).features(derived.space(recipe).intact),
        1,
        hidden=options.hidden,
        bottleneck=options.bottleneck,
        layers=options.layers,
    )
    scale_inputs(head, recipe.backbone.input_scale)
    return head


def read(weights: Path, recipe: Recipe) -> PrototypeHead:
    """The head of the file. UserError: there is none, or of another shape."""
    head, found = built(recipe), dict[str, Tensor]()
    try:
        with safe_open(weights, framework="pt") as file:
            for name in file.keys():
                own = name.removeprefix(NAME)
                if name.startswith(NAME) and own not in PROTOTYPES:
                    found[own] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights} is missing or damaged: {error}") from error
    wanted = {n: t for n, t in head.state_dict().items() if n not in PROTOTYPES}
    problems = differences(shapes(wanted), shapes(found))
    if problems:
        raise UserError(f"{weights} has no head 0 that fits: {'; '.join(problems)}")
    head.load_state_dict(found, strict=False)
    return head


def first_layer(weights: Path, recipe: Recipe, subnet: Subnet) -> dict[str, Tensor]:
    """weight (hidden, C), bias of the first layer as one size has it, its factor in the weight.

    UserError: the file has no such head.
    """
    first, width = read(weights, recipe).first, derived.shape(recipe).features(subnet)
    factor = alpha(first.in_features, width, first.input_scale)
    return {"weight": first.weight.detach()[:, :width] * factor, "bias": first.bias.detach()}


def first_width(recipe: Recipe) -> int:
    """Channels that leave the first layer."""
    return recipe.heads.hidden if recipe.heads.layers > 1 else recipe.heads.bottleneck


def flops(recipe: Recipe, features: int) -> float:
    """Of one class feature of that width."""
    options = recipe.heads
    widths = [features, *[options.hidden] * (options.layers - 1), options.bottleneck]
    return 2.0 * sum(a * b for a, b in pairwise(widths))


def has_one(weights: Path) -> bool:
    """Whether the file of a deployed network holds prototype heads."""
    try:
        with safe_open(weights, framework="pt") as file:
            return any(name.startswith(NAME) for name in file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights} is missing or damaged: {error}") from error
