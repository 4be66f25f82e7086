"""Sizes of a templated ViT outside: plain ViTs, whose matrices were made once."""

from collections.abc import Mapping

from torch import Tensor

from poa_ds.model.tucker.shape import TuckerShape
from poa_ds.model.vit.names import VitForm
from poa_ds.system.errors import UserError


class TuckerForm(VitForm):
    """Nothing of the factors is left in what is written."""

    title, published_block = "templated ViT", None

    @staticmethod
    def from_plain(state: Mapping[str, Tensor], shape: TuckerShape) -> dict[str, Tensor]:
        raise UserError(
            "a plain network has matrices and no template: backbone.name=tucker can begin with a"
            " run of that backbone alone, and `poa-ds template` makes one of a ViT's"
        )


FORM = TuckerForm()
