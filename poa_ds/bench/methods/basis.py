"""The network of a finished run in another basis, for runs that begin with it."""

import shutil
from pathlib import Path
from typing import cast

import torch

from poa_ds.bench.methods.runs import Run
from poa_ds.checkpoint.deployed import load_teacher, write_teacher
from poa_ds.data.store.index import ShardFolder
from poa_ds.export.import_weights import calibration_images
from poa_ds.export.rebase import Rebase, checked, described, rebased, statistics


@torch.no_grad()
def write(run: Run) -> None:
    """Write `recipe.start` of the run from its source, unless the run has begun with it.

    The basis is found on images that the run learns from. UserError: the source is no run with a
    plain ViT.
    """
    out = Path(run.recipe.start)
    if out.is_dir():
        if run.folder.is_dir():
            return
        shutil.rmtree(out)  # of a source, or in a basis, that may be another by now
    model, recipe, step = load_teacher(Path(run.source))
    network, way = checked(model, run.source), cast(Rebase, run.rebase)
    images = calibration_images(recipe, ShardFolder.open(Path(run.recipe.data.train)))
    state = rebased(network, statistics(network, images), way).state
    tensors = {f"backbone.{name}": tensor for name, tensor in state.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_teacher(out, tensors, described(recipe, way), step, source=run.source)
