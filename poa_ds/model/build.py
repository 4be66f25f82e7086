"""From a recipe to its elastic backbone."""

from collections.abc import Callable

from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.resnet.network import ElasticResNet
from poa_ds.model.shape import shape
from poa_ds.model.swin.network import ElasticSwin
from poa_ds.model.vit.network import ElasticViT
from poa_ds.recipe import load as recipes
from poa_ds.recipe.load import Config


def _vit(config: Config) -> ElasticBackbone:
    recipe = config.backbone
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


def _of(kind: type[ElasticSwin] | type[ElasticResNet]) -> Callable[[Config], ElasticBackbone]:
    def build(config: Config) -> ElasticBackbone:
        checkpointing = config.backbone.activation_checkpointing
        return kind(recipes.space(config), shape(config), activation_checkpointing=checkpointing)

    return build


BACKBONES = {"vit": _vit, "swin": _of(ElasticSwin), "resnet": _of(ElasticResNet)}


def backbone(config: Config) -> ElasticBackbone:
    """The backbone that the recipe describes, newly initialised from torch's global generator."""
    return BACKBONES[config.backbone.name](config)
