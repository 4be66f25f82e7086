"""Crops, colours and masks as the published recipe has them, which are the recipe's defaults."""

from poa_ds.data.spec import batch_spec
from poa_ds.recipe.tree import Recipe

BATCH = batch_spec(Recipe())
CROPS, COLOURS = BATCH.crops, BATCH.photometric
