"""poa-ds extract: sizes of a run as plain networks, each in a folder with its model card."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.deploy.card import card
from poa_ds.export.extract import extract, fold_layer_scale
from poa_ds.export.folder import CARD, RECIPE, WEIGHTS, Export, Style, check_images
from poa_ds.model import form
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe
from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError

PROGRAMS = {"timm": "timm", "hf": "transformers"}  # that load a format


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds extract`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument(
        "--size",
        required=True,
        help="name or WIDTHxDEPTH; several by commas, or all: a folder each",
    )
    parser.add_argument("--out", type=paths.path, required=True, help="folder to write")
    parser.add_argument(
        "--format",
        choices=list(WEIGHTS),
        help="timm where it can express the size exactly, else state-dict, which comes with "
        "model.py, a module that needs torch alone; hf: for AutoModel of transformers, where that "
        "can express the size exactly; onnx",
    )
    parser.add_argument(
        "--dynamic-size",
        action="store_true",
        help="an ONNX file for images of any sides, not of the training's alone; --check then "
        "compares at a second size too",
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="weights in 16 bits, half the size; features differ by about 1 %% of their size",
    )
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--fold-layerscale", action="store_true", help="no LayerScale: its factors into the weights"
    )
    parser.add_argument(
        "--check", action="store_true", help="reload what is written, compare features on images"
    )
    parser.add_argument(
        "--images",
        type=paths.path,
        metavar="SHARDS",
        help="of --check (recipe's evaluation.queries; random ones where they are not)",
    )


def run(args: argparse.Namespace) -> int:
    """Write every asked size, and say how to use the first."""
    model, recipe, step = load_teacher(args.run, args.step)
    source = str(find_teacher(args.run, args.step))
    subnets = _sizes(model, recipe, args.size)
    styles = {subnet: style(model, subnet, args.format) for subnet in subnets}
    if args.dynamic_size and args.format != "onnx":
        raise UsageError(
            "--dynamic-size is for --format onnx; a state-dict's model.py takes any size"
        )
    if args.images and not args.check:
        raise UsageError(f"--images {args.images}: they are for --check, which is not given")
    images, what = check_images(recipe, args.images) if args.check else (None, "")
    folders, uses = _folders(args.out, subnets), []
    for subnet, folder in folders.items():
        state = extract(model, subnet)
        state = fold_layer_scale(state) if args.fold_layerscale else state
        export = Export(
            model, recipe, step, source, styles[subnet], args.dynamic_size, half=args.half
        )
        difference = export.write(subnet, state, folder, images, {CARD: card(export, subnet)})
        tell(f"{subnet}, {model.parameter_count(subnet):,} parameters: {folder}")
        if difference is not None:
            tell(f"  largest difference to the elastic network on {what}: {difference:.2e}")
        uses.append(export.usage(subnet, folder))
    tell(uses[0])
    return 0


def one_size(model: ElasticBackbone, recipe: Recipe, named: str) -> Subnet:
    """The size of that name. UsageError: there is none, it is untrained, or they are several."""
    found = _sizes(model, recipe, named)
    if len(found) > 1:
        raise UsageError(f"--size {named} are {len(found)} sizes: name one")
    return found[0]


def _sizes(model: ElasticBackbone, recipe: Recipe, named: str) -> tuple[Subnet, ...]:
    try:
        subnets = model.space.select(named)
    except UsageError as error:
        raise UsageError(f"{error}{model.other_sizes}") from error
    derived.check_trained(recipe, subnets)
    return tuple(subnets)


def style(model: ElasticBackbone, subnet: Subnet, asked: Style | None) -> Style:
    """The asked format, or the best one. UsageError: it cannot express the size."""
    found = form.of(model.kind)
    why = found.not_timm(model.shape, subnet)
    refused = {"timm": why}
    if asked == "hf":
        refused["hf"] = found.not_hf(model.shape, subnet)
    if asked and refused.get(asked):
        raise UsageError(
            f"--format {asked}: {PROGRAMS[asked]} cannot express {subnet} exactly"
            f" ({refused[asked]}): use --format state-dict or onnx"
        )
    return asked or ("state-dict" if why else "timm")


def _folders(out: Path, subnets: Sequence[Subnet]) -> dict[Subnet, Path]:
    """Where each size goes: OUT itself for one, sub-folders for several."""
    if len(subnets) == 1:
        return {subnets[0]: out}
    if (out / RECIPE).exists():
        raise UsageError(f"--out {out} holds one exported model: several sizes need a new folder")
    return {subnet: out / subnet.label for subnet in subnets}
