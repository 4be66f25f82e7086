"""poa-ds wandb: a run's curves for Weights & Biases, made from what is in its folder."""

import argparse

from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UserError
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import tracker, wandb_store
from poa_ds.track.metrics_file import read_rows
from poa_ds.track.mlflow_sync import is_complete, recipe_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `poa-ds wandb`."""
    parser.add_argument("folder", type=paths.path, metavar="RUN", help="output directory of a run")


def run(args: argparse.Namespace) -> int:
    """Bring the run there, or write it for `wandb sync`; say where it is."""
    recipe, files = recipe_of(args.folder), RunFolder(args.folder.resolve())
    if not files.metrics.is_file():
        raise UserError(f"{files.metrics} is absent: the run has logged nothing yet")
    key = wandb_store.known_id(files.path, {})
    whole = is_complete(files.path, read_rows(files.metrics))
    try:
        store = wandb_store.open_store(recipe, files.path, key)
        store.catch_up()
        tracker.draw_missing(store, files.path, recipe.evaluation.report_k)
        place = store.place
        store.close("FINISHED" if whole else "FAILED")
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"pip install 'poa_ds[wandb]': {error}") from error
    except Exception as error:  # wandb's own, of many kinds
        raise UserError(f"Weights & Biases: {error}; the same command goes on") from error
    tell(f"written; {place}")
    return 0
