"""poa-ds tensorboard: a run's curves as files of TensorBoard, made from what is in its folder."""

import argparse

from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UserError
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import tensorboard_store, tracker
from poa_ds.track.mlflow_sync import recipe_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `poa-ds tensorboard`."""
    parser.add_argument("folder", type=paths.path, metavar="RUN", help="output directory of a run")


def run(args: argparse.Namespace) -> int:
    """Write the files anew; say how they are looked at."""
    recipe, files = recipe_of(args.folder), RunFolder(args.folder)
    if not files.metrics.is_file():
        raise UserError(f"{files.metrics} is absent: the run has logged nothing yet")
    try:
        store = tensorboard_store.open_store(args.folder)
    except ImportError as error:
        raise UserError(f"pip install 'poa_ds[tensorboard]': {error}") from error
    tracker.draw_missing(store, args.folder, recipe.evaluation.report_k)
    store.close()
    tell(f"written; tensorboard --logdir {files.tensorboard}")
    return 0
