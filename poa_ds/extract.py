"""One size of an elastic network as a plain model of its own.

An elastic linear layer multiplies its input by max width / width; here that factor moves into the
weight, in float32, so that any plain ViT computes the same.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from poa_ds.elastic import ElasticBackbone
from poa_ds.errors import UsageError
from poa_ds.export import RECIPE, WEIGHTS, Export, check_images, usage
from poa_ds.interop import to_timm
from poa_ds.snapshot import find_teacher, load_teacher
from poa_ds.space import Subnet

BEFORE_SCALE = {"ls1": "attn.proj", "ls2": "mlp.fc2"}  # the layer that each LayerScale follows


def extract(
    model: ElasticBackbone, subnet: Subnet, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The state dict of one size under timm's names, which are DINOv2's too.

    The factors are folded in float32 (float64 for such a model), then all is cast to `dtype`. The
    final norm is part of it, the mask token is not.
    """
    whole, width = model.space.intact.width, subnet.width

    def cut(name: str, tensor: Tensor) -> Tensor:
        if name in ("embed.cls_token", "embed.pos_embed"):
            return tensor[..., :width]
        rows = len(tensor) * width // whole
        if tensor.ndim == 2:  # a linear layer
            return tensor[:rows, : tensor.shape[1] * width // whole] * (whole / width)
        return tensor[:rows]

    place = {block: i for i, block in enumerate(model.space.blocks(subnet.depth))}
    kept = {}
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "blocks":
            number, _, rest = rest.partition(".")
            if int(number) not in place:
                continue
            name = f"blocks.{place[int(number)]}.{rest}"
        exact = tensor if tensor.dtype == torch.float64 else tensor.float()
        if name != "embed.mask_token":
            kept[name] = cut(name, exact).to("cpu", dtype).contiguous()
    return to_timm(kept, model.head_dim)


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
    parser.add_argument("run", type=Path, metavar="RUN", help="output directory, or one teacher")
    parser.add_argument(
        "--size",
        required=True,
        help="name or WIDTHxDEPTH; several by commas, or all: a folder each",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--format", choices=list(WEIGHTS), default="timm", help="%(default)s")
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--fold-layerscale", action="store_true", help="no LayerScale: its factors into the weights"
    )
    parser.add_argument(
        "--check", action="store_true", help="reload with timm and compare features on images"
    )


def run(args: argparse.Namespace) -> int:
    """Write every asked size, and say how to use the first."""
    model, config, step = load_teacher(args.run, args.step)
    source = str(find_teacher(args.run, args.step))
    export = Export(model, config, step, source, args.format)
    subnets = model.space.select(args.size)
    images, what = check_images(config) if args.check else (None, "")
    folders = _folders(args.out, subnets)
    for subnet, folder in folders.items():
        state = extract(model, subnet)
        state = fold_layer_scale(state) if args.fold_layerscale else state
        difference = export.write(subnet, state, folder, images)
        print(f"{subnet}, {model.parameter_count(subnet):,} parameters: {folder}")
        if difference is not None:
            print(f"  largest difference to the elastic network on {what}: {difference:.2e}")
    first = next(iter(folders))
    print(usage(folders[first], first, config, args.format))
    return 0


def _folders(out: Path, subnets: Sequence[Subnet]) -> dict[Subnet, Path]:
    """Where each size goes: OUT itself for one, sub-folders for several."""
    if len(subnets) == 1:
        return {subnets[0]: out}
    if (out / RECIPE).exists():
        raise UsageError(f"--out {out} holds one exported model: several sizes need a new folder")
    return {subnet: out / subnet.label for subnet in subnets}
