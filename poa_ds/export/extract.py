"""One size of an elastic network as a plain model of its own.

An elastic linear layer multiplies its input by max width / width; here that factor moves into the
weight, in float32, so that a plain network computes the same.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.export.folder import RECIPE, WEIGHTS, Export, Style, check_images
from poa_ds.export.plain_state import PlainState
from poa_ds.model import form
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError

PROGRAMS = {"timm": "timm", "hf": "transformers"}  # that load a format
BEFORE_SCALE = {"ls1": "attn.proj", "ls2": "mlp.fc2"}  # the layer that each LayerScale follows


def extract(
    model: ElasticBackbone, subnet: Subnet, dtype: torch.dtype = torch.float32
) -> PlainState:
    """The state dict of one size as a plain network: the ViT's under timm's and DINOv2's names.

    The factors are folded in float32 (float64 for such a model), then all is cast to `dtype`. The
    final norm is part of it, the mask token is not. Swin: the names of swin/plain.py; ResNet:
    torchvision's, with group norms in the places of the batch norms. ValueError: the size is not in
    the space.
    """
    model.space.require(subnet)
    found = form.of(model.kind)
    state = found.extract(model, subnet, dtype)
    _, arguments = found.arguments(model.shape, subnet, state)
    return PlainState(state, kind=model.kind, arguments=arguments)


def fold_layer_scale(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same network without LayerScale: its factors go into the layer before."""
    folded = {name: t for name, t in state.items() if not name.endswith(".gamma")}
    for name, gamma in state.items():
        if name.endswith(".gamma"):
            block, scale, _ = name.rsplit(".", 2)
            layer = f"{block}.{BEFORE_SCALE[scale]}"
            folded[f"{layer}.weight"] = folded[f"{layer}.weight"] * gamma[:, None]
            folded[f"{layer}.bias"] = folded[f"{layer}.bias"] * gamma
    return folded


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
    try:
        subnets = model.space.select(args.size)
    except UsageError as error:
        raise UsageError(f"{error}{model.other_sizes}") from error
    derived.check_trained(recipe, subnets)
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
        export = Export(model, recipe, step, source, styles[subnet], args.dynamic_size)
        difference = export.write(subnet, state, folder, images)
        tell(f"{subnet}, {model.parameter_count(subnet):,} parameters: {folder}")
        if difference is not None:
            tell(f"  largest difference to the elastic network on {what}: {difference:.2e}")
        uses.append(export.usage(subnet, folder))
    tell(uses[0])
    return 0


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
