"""From a recipe to its elastic backbone."""

from poa_ds import config as recipes
from poa_ds.config import Config
from poa_ds.vit import ElasticViT


def backbone(config: Config) -> ElasticViT:
    """The backbone that the recipe describes, newly initialised from torch's global generator."""
    recipe = config.backbone
    assert recipe.name == "vit", recipe.name
    return ElasticViT(
        recipes.space(config),
        image_size=config.crops.global_size,
        patch_size=recipe.patch_size,
        head_dim=recipe.head_dim,
        mlp_ratio=recipe.mlp_ratio,
        layer_scale=recipe.layer_scale,
        init=recipe.init,
        activation_checkpointing=recipe.activation_checkpointing,
    )
