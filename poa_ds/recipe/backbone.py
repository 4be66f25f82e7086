"""From a recipe to its elastic backbone: the one module of this package that needs torch."""

from poa_ds.model import build
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe


def backbone(recipe: Recipe) -> ElasticBackbone:
    """The recipe's backbone, newly initialised from torch's global generator."""
    space = derived.space(recipe)
    return build.backbone(
        recipe.backbone, recipe.crops.global_size, space, channels=recipe.data.channels
    )
