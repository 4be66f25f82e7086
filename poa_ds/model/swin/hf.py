"""Swins as transformers has them, where its blocks compute the same."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from poa_ds.model.options import COLOURS
from poa_ds.model.shape import map_sides
from poa_ds.model.swin import plain
from poa_ds.model.swin.shape import SwinShape

# (timm's name of a part of a block, that of transformers)
_PARTS = (
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
    ("attn.proj", "attention.output.dense"),
    ("attn.relative_position_bias_table", "attention.self.relative_position_bias_table"),
)


def refused(shape: SwinShape, shifts: Sequence[Sequence[bool]]) -> str:
    """Why transformers computes something else than Swins of width `widest`, or an empty text.

    shifts: of each stage, of each block, whether its windows are shifted.
    """
    window, sides = shape.window, map_sides(shape.image_size, shape.patch_size)
    for side, row in zip(sides, shifts, strict=True):
        if row != [i % 2 == 1 for i in range(len(row))]:
            return "its blocks do not shift their windows in turns"
        if side < window or (side == window and any(row)):
            return f"it does not shift windows of {window} rows on a map of {side}, or shrinks them"
    return ""


def written(
    arguments: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, state) of transformers, of timm's arguments and state."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if found := re.match(r"layers\.(\d+)\.downsample\.(.+)", name):
            # timm merges at the beginning of a stage, transformers at the end of the one before
            theirs[f"encoder.layers.{int(found[1]) - 1}.downsample.{found[2]}"] = tensor
        elif found := re.match(r"(layers\.\d+\.blocks\.\d+)\.attn\.qkv\.(\w+)", name):
            parts = tensor.chunk(3)
            for part, chunk in zip(("query", "key", "value"), parts, strict=True):
                theirs[f"encoder.{found[1]}.attention.self.{part}.{found[2]}"] = chunk
        elif found := re.match(r"(layers\.\d+\.blocks\.\d+)\.(.+)", name):
            rest = found[2]
            for timm, other in _PARTS:
                rest = re.sub(rf"^{re.escape(timm)}\b", other, rest)
            theirs[f"encoder.{found[1]}.{rest}"] = tensor
        else:
            name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
            name = name.replace("patch_embed.norm", "embeddings.norm")
            theirs[re.sub(r"^norm\.", "layernorm.", name)] = tensor
    config = {
        "model_type": "swin",
        "architectures": ["SwinModel"],
        "image_size": arguments["img_size"],
        "patch_size": arguments["patch_size"],
        "num_channels": arguments.get("in_chans", COLOURS),
        "embed_dim": arguments["embed_dim"],
        "depths": arguments["depths"],
        "num_heads": arguments["num_heads"],
        "window_size": arguments["window_size"],
        "mlp_ratio": float(arguments["mlp_ratio"]),
        "layer_norm_eps": plain.EPS,
        "hidden_act": "gelu",
        "drop_path_rate": 0.0,
    }
    return config, {name: tensor.contiguous().clone() for name, tensor in theirs.items()}
