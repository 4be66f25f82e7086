"""Sizes of a templated ViT outside: plain ViTs, whose matrices were made once."""

from poa_ds.model.vit.names import VitForm


class TuckerForm(VitForm):
    """Nothing of the factors is left in what is written."""

    title, published_block = "templated ViT", None


FORM = TuckerForm()
