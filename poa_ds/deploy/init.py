"""poa-ds init: a plain network of any width and depth, made from the template of a run, fitted or
not."""

import argparse

import torch

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.deploy.card import card
from poa_ds.deploy.extract import style
from poa_ds.export.extract import extract
from poa_ds.export.fit import fit
from poa_ds.export.folder import CARD, WEIGHTS, Export, check_images
from poa_ds.model.space import Subnet
from poa_ds.system import paths
from poa_ds.system.arguments import whole
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError

STEPS = 200  # of a fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds init`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument(
        "--size", required=True, help="name or WIDTHxDEPTH, among the trained sizes or not"
    )
    parser.add_argument("--out", type=paths.path, required=True, help="folder to write")
    parser.add_argument(
        "--format", choices=list(WEIGHTS), help="as of poa-ds extract (timm where it can be)"
    )
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--fit",
        type=paths.path,
        metavar="SHARDS",
        help="then the size's own scalers learn from the run's intact network on these images",
    )
    parser.add_argument(
        "--steps", type=whole, help=f"of --fit, each of the run's batch ({STEPS}); 0: no fit"
    )
    parser.add_argument(
        "--check", action="store_true", help="reload what is written, compare features on images"
    )
    parser.add_argument(
        "--images", type=paths.path, metavar="SHARDS", help="of --check, as of poa-ds extract"
    )


def run(args: argparse.Namespace) -> int:
    """Write the network, and say how to use it."""
    model, recipe, step = load_teacher(args.run, args.step)
    size = model.space.names.get(args.size) or Subnet.read(args.size)
    if size is None:
        raise UsageError(
            f"--size {args.size!r} is neither a name of the run"
            f" ({', '.join(model.space.names) or 'it has none'}) nor WIDTHxDEPTH"
        )
    if args.steps and not args.fit:
        raise UsageError(f"--steps {args.steps}: they are of --fit SHARDS, which is not given")
    if args.images and not args.check:
        raise UsageError(f"--images {args.images}: they are for --check, which is not given")
    made = model.resized(size, torch.Generator().manual_seed(recipe.seed))
    images, what = check_images(recipe, args.images) if args.check else (None, "")
    source, form = find_teacher(args.run, args.step), style(made, size, args.format)
    steps, learned = STEPS if args.steps is None else args.steps, "not trained itself"
    if args.fit and steps:
        found = fit(made, recipe, source, args.fit, steps)
        learned = str(found)
        tell(f"fit: loss {found.first:.4g} at first, {found.last:.4g} at the end")
    about = f"from the template of {model.space.smallest} to {model.space.intact}; {learned}"
    export = Export(made, recipe, step, str(source), form, made=about)
    texts = {CARD: card(export, size)}
    difference = export.write(size, extract(made, size), args.out, images, texts)
    tell(f"{size}, {made.parameter_count(size):,} parameters, {about}: {args.out}")
    if difference is not None:
        tell(f"  largest difference to the factors' form on {what}: {difference:.2e}")
    tell(export.usage(size, args.out))
    return 0
