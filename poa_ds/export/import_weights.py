"""`poa-ds import`: a network of another project as a run of all sizes."""

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from poa_ds.checkpoint.deployed import write_teacher
from poa_ds.data.loader import eval_batches
from poa_ds.data.places import open_folder
from poa_ds.data.store.index import ShardFolder
from poa_ds.export import weights_source
from poa_ds.export.adapted import colours
from poa_ds.export.import_poa import from_poa_teacher, read_checkpoint
from poa_ds.export.rebase import Rebased, described, rebased, statistics
from poa_ds.export.vit_weights import Found, at_resolution, recognised
from poa_ds.export.weights_source import Source, read_weights
from poa_ds.model import first_layer
from poa_ds.model.options import Backbone
from poa_ds.model.shape import vit_parts
from poa_ds.model.vit.network import ElasticViT
from poa_ds.recipe import derived, load
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Augmentation, Recipe
from poa_ds.system import paths
from poa_ds.system.arguments import count
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError

CALIBRATION = 512  # images that the basis is found on
INPUT_SCALE = 0.5  # of slices of networks that were not trained elastic
STANDARD = Augmentation().mean
FEATURES = "original_features.safetensors"
LOCAL, RESIZE = 96 / 224, 256 / 224  # of the recipes: pixels of local crops, and before the crop


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds import`."""
    parser.add_argument(
        "source",
        type=weights_source.named,
        metavar="SOURCE",
        help="timm:NAME, a model of timm's in the hub's cache of this machine; or a .safetensors or"
        " .pth file; or a folder with model.safetensors (and config.json)",
    )
    parser.add_argument(
        "--out", type=paths.path, required=True, help="folder to write, new or empty"
    )
    parser.add_argument(
        "--rebase",
        choices=("none", "sort", "rotate"),
        help="another basis for the same network, in which slices keep more of it (rotate with"
        " --calibrate, else none)",
    )
    parser.add_argument(
        "--calibrate", type=paths.path, metavar="SHARDS", help="images that --rebase looks at"
    )
    add_options(parser)
    parser.add_argument(
        "--published",
        type=paths.path,
        metavar="RECIPE",
        help="SOURCE is a teacher_checkpoint.pth of the published POA code with sizes, patch_size"
        " and head_dim of this recipe, such as vit_l16_in1k",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that say what the network is and which sizes it is to have."""
    weights_source.add_download(parser)
    parser.add_argument(
        "--widths", type=_numbers, help="channels, such as 192,256,384 (heads from half of them on)"
    )
    parser.add_argument(
        "--depths",
        type=_numbers,
        help="blocks, evenly spaced, such as 6,9,12 (half of them and more)",
    )
    parser.add_argument(
        "--image-size",
        type=count,
        help="pixels; positions are resized once, as timm does (the source's, 518 for DINOv2)",
    )
    parser.add_argument(
        "--head-dim", type=count, help="channels of a head (64; 80 at a width of 1280, as in ViT-H)"
    )
    parser.add_argument(
        "--input-scale",
        type=float,
        help=f"backbone.input_scale of slices ({INPUT_SCALE}; 1: that of networks trained as POA)",
    )
    parser.add_argument(
        "--channels",
        type=count,
        help="of the images (the network's own). Another number makes another first layer, as"
        " timm's in_chans: 1 sums the weights, others have them in turns, by 3 / channels",
    )
    parser.add_argument(
        "--range",
        type=_each,
        metavar="LOW,HIGH",
        help="data.range: numbers of 16-bit or float images that become 0 and 1",
    )
    parser.add_argument("--mean", type=_each, help="of the pixels (config.json, else ImageNet's)")
    parser.add_argument("--std", type=_each, help="of the pixels (config.json, else ImageNet's)")
    parser.add_argument(
        "--licence",
        type=paths.path,
        metavar="FILE",
        help="text that goes with the weights (a LICENSE file beside SOURCE)",
    )


def given_options(args: argparse.Namespace) -> list[str]:
    """What was given of `add_options`, as words of a command."""
    words = ["--download"] if args.download else []
    for key in ("widths", "depths", "range", "mean", "std"):
        if values := getattr(args, key):
            words += [f"--{key}", ",".join(map(str, values))]
    for key in ("image_size", "channels", "head_dim", "input_scale", "licence"):
        if (value := getattr(args, key)) is not None:
            words += [f"--{key.replace('_', '-')}", str(value)]
    return words


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 192,256,384") from None


def _each(text: str) -> tuple[float, ...]:
    """A number for every channel."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 0.5,0.5,0.5") from None


def run(args: argparse.Namespace) -> int:
    """Write the network as the teacher of a run."""
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise UsageError(f"{args.out} exists and is not an empty folder: name a new one")
    if args.published:
        return _run_published(args)
    args.rebase = args.rebase or ("rotate" if args.calibrate else "none")
    if (args.rebase != "none") != bool(args.calibrate):
        raise UsageError("--rebase sort and rotate need --calibrate SHARDS, and none takes none")
    source, found, recipe = read(args, args.source)
    network = imported(found, recipe)
    moved = _rebased(network, recipe, args)
    recipe = described(recipe, args.rebase)
    tensors = {f"backbone.{name}": tensor for name, tensor in moved.state.items()}
    told = first_layer.described(found.channels, recipe.data.channels)
    about = f"{args.source}, {told}" if told else args.source
    write_teacher(args.out, tensors, recipe, 0, source=about, licence=source.licence)
    if args.rebase != "none":
        about = {"matrix": moved.matrix.float(), "bias": moved.bias.float()}
        save_file({name: t.contiguous() for name, t in about.items()}, args.out / FEATURES)
    _tell(args.out, found, recipe, source)
    return 0


def read(args: argparse.Namespace, named: str) -> tuple[Source, Found, Recipe]:
    """What SOURCE names: where it is, the network, the recipe that describes it."""
    source = weights_source.source(named, download=args.download, licence=args.licence)
    weights = source.weights
    found = recognised(read_weights(weights), head_dim=args.head_dim, what=str(weights))
    given = {key: list(v) for key in ("mean", "std") if (v := getattr(args, key))}
    return source, found, recipe_of(found, args, source.pixels | given)


def _run_published(args: argparse.Namespace) -> int:
    """The same of a checkpoint of the published code, backbone and heads, whatever its backbone."""
    keys = (
        "widths depths calibrate rebase image_size channels head_dim input_scale range mean"
        " std".split()
    )
    given = [f"--{key.replace('_', '-')}" for key in keys if getattr(args, key) is not None]
    if args.download:
        given.append("--download")  # SOURCE is a file
    if given:
        raise UsageError(
            f"--published: its recipe says what SOURCE is, leave out {', '.join(given)}"
        )
    source = weights_source.source(args.source, licence=args.licence)
    recipe = load.recipe(args.published)
    tensors = from_poa_teacher(read_checkpoint(source.weights), recipe)
    write_teacher(args.out, tensors, recipe, 0, source=args.source, licence=source.licence)
    count = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    tell(
        f"{len(tensors)} tensors, {count:.1f} million numbers: {args.out}\n"
        f"{_uses(args.out, recipe)}"
    )
    return 0


def recipe_of(found: Found, args: argparse.Namespace, pixels: dict[str, Any]) -> Recipe:
    """The recipe that describes the network and its sizes."""
    channels = args.channels or found.channels
    if wrong := [key for key in ("mean", "std") if len(pixels.get(key, STANDARD)) != channels]:
        options = " and ".join(f"--{key}" for key in wrong)
        raise UsageError(f"images of {channels} channels: give {options}, {channels} numbers each")
    side, patch = args.image_size or found.image_size, found.patch_size
    least = -(-found.width // 2 // found.head_dim) * found.head_dim
    widths = args.widths or tuple(range(least, found.width + 1, found.head_dim))
    depths = args.depths or tuple(range(-(-found.depth // 2), found.depth + 1))
    steps = {after - before for before, after in pairwise(depths)}
    for key, values, largest in (("widths", widths, found.width), ("depths", depths, found.depth)):
        if values[-1] != largest:
            raise UsageError(f"--{key} must end with {largest}, the network's own: {[*values]}")
    if len(steps) > 1:
        raise UsageError(f"--depths {[*depths]} are not evenly spaced")
    return load.from_dict(
        {
            "backbone": {
                "widths": [*widths],
                "depth": {"min": depths[0], "max": depths[-1], "step": min(steps, default=1)},
                "patch_size": patch,
                "head_dim": found.head_dim,
                "mlp_ratio": found.mlp_ratio,
                "registers": found.registers,
                "swiglu": found.swiglu,
                "norm_eps": found.norm_eps,
                "positions": found.positions,
                "qkv_bias": found.qkv_bias,
                "layer_scale": 1.0,
                "drop_path": 0.0,
                "input_scale": INPUT_SCALE if args.input_scale is None else args.input_scale,
            },
            "crops": {
                "global_size": side,
                "local_size": max(round(side * LOCAL / patch), 1) * patch,
            },
            "augmentation": pixels | colours(channels),
            "data": {"channels": channels, "range": [*(args.range or ())]},
            "evaluation": {"resize": round(side * RESIZE), "crop": side},
        }
    )


@torch.no_grad()
def imported(found: Found, recipe: Recipe) -> ElasticViT:
    """The elastic network of the recipe with the tensors that were found, in their type."""
    with torch.device("meta"):
        network = backbone(recipe)
    tensors, grid = dict(found.tensors), recipe.crops.global_size // found.patch_size
    patches, channels = tensors["embed.patch.weight"], recipe.data.channels
    tensors["embed.patch.weight"] = first_layer.adapted(patches, channels)
    if found.positions == "learned":
        tensors["embed.pos_embed"] = at_resolution(tensors["embed.pos_embed"], grid)
    network.load_state_dict(tensors, assign=True)
    return cast(ElasticViT, network.requires_grad_(False).eval())


def _rebased(network: ElasticViT, recipe: Recipe, args: argparse.Namespace) -> Rebased:
    network = network.float()
    if args.rebase == "none":
        return rebased(network, None, "none")
    images = calibration_images(recipe, open_folder(str(args.calibrate), recipe.data))
    return rebased(network, statistics(network, images), args.rebase)


def calibration_images(recipe: Recipe, folder: ShardFolder) -> Iterator[Tensor]:
    """CALIBRATION normalised images of the folder, spread evenly over it."""
    evaluation = recipe.evaluation
    count = min(CALIBRATION, len(folder))
    ids = [i * len(folder) // count for i in range(count)]
    mean, std = (
        255 * rearrange(torch.tensor(x), "c -> c 1 1")
        for x in (recipe.augmentation.mean, recipe.augmentation.std)
    )
    sides = {"resize": evaluation.resize, "crop": evaluation.crop}
    for images, _ in eval_batches(folder, ids, **sides, batch_size=16):
        yield (images.float() - mean) / std


def _tell(out: Path, found: Found, recipe: Recipe, source: Source) -> None:
    intact, pixels = derived.space(recipe).intact, recipe.augmentation
    kind = f"patches of {found.patch_size}, {found.registers} registers"
    kind += f", SwiGLU of {found.swiglu}" if found.swiglu else ""
    if not source.licence:
        called = f" (the hub calls it {source.called})" if source.called else ""
        tell(
            f"no licence text was found beside the weights{called}: --licence FILE adds it to every"
            " export"
        )
    options, standard = recipe.backbone, Backbone()
    keys = "patch_size head_dim mlp_ratio input_scale".split() + vit_parts(options)
    values = {key: getattr(options, key) for key in keys}
    changed = [f"backbone.{k}={v}" for k, v in values.items() if v != getattr(standard, k)]
    if told := first_layer.described(found.channels, recipe.data.channels):
        tell(told)
    tell(
        f"{intact}, {kind}, {recipe.crops.global_size} px, pixels normalised with"
        f" mean {[*pixels.mean]} std {[*pixels.std]}: {out}\n"
        f"{_uses(out, recipe)}\n"
        f"a recipe that starts with it has {' '.join(changed)} backbone.layer_scale=1,"
        f" {intact} as its largest size and crops.global_size={recipe.crops.global_size}"
    )


def _uses(out: Path, recipe: Recipe) -> str:
    """The commands that come next."""
    return (
        f"  poa-ds sizes {out}\n"
        f"  poa-ds eval knn {out} --bank SHARDS --queries SHARDS\n"
        f"  poa-ds extract {out} --size {derived.space(recipe).intact} --out MODEL --check"
    )
