"""What the students of a slot drop: by its step and slot alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.data.store.order import DROP_PATH, keyed
from poa_ds.model.backbone import DropPath, ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Recipe


def draw(
    recipe: Recipe,
    backbone: ElasticBackbone,
    batch: Batch,
    crops: Sequence[Tensor],
    subnets: Sequence[Subnet],
) -> DropPath | None:
    """Stochastic depth of these groups of the batch's crops; None: nothing is dropped."""
    # of the step and slot alone: any rank that gets this slot keeps the same sequences
    rng = keyed(DROP_PATH, recipe.seed, batch.step, batch.slot)
    return backbone.draw_drop_path(
        backbone.packing(crops),
        subnets,
        recipe.backbone.drop_path,
        torch.Generator().manual_seed(rng.getrandbits(63)),
        batch.global_crops.device,
    )
