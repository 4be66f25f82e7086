"""From a recipe to its elastic backbone."""

from collections.abc import Callable

from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.resnet.network import ElasticResNet
from poa_ds.model.shape import shape
from poa_ds.model.swin.network import ElasticSwin
from poa_ds.model.vit.network import ElasticViT
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe


def _vit(recipe: Recipe) -> ElasticBackbone:
    options = recipe.backbone
    return ElasticViT(
        derived.space(recipe),
        image_size=recipe.crops.global_size,
        patch_size=options.patch_size,
        head_dim=options.head_dim,
        mlp_ratio=options.mlp_ratio,
        layer_scale=options.layer_scale,
        init=options.init,
        activation_checkpointing=options.activation_checkpointing,
    )


def _of(kind: type[ElasticSwin] | type[ElasticResNet]) -> Callable[[Recipe], ElasticBackbone]:
    def build(recipe: Recipe) -> ElasticBackbone:
        checkpointing = recipe.backbone.activation_checkpointing
        return kind(derived.space(recipe), shape(recipe), activation_checkpointing=checkpointing)

    return build


BACKBONES = {"vit": _vit, "swin": _of(ElasticSwin), "resnet": _of(ElasticResNet)}


def backbone(recipe: Recipe) -> ElasticBackbone:
    """The backbone that the recipe describes, newly initialised from torch's global generator."""
    return BACKBONES[recipe.backbone.name](recipe)
