"""What a recipe says about its backbone: the section `backbone`, and the sizes in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from poa_ds.model.architectures import ARCHITECTURES
from poa_ds.system.typed_yaml import Bounds, Count, OneOf, Positive


@dataclass(frozen=True)
class Range:
    """min, min + step, ..., max."""

    min: Count
    max: Count
    step: Count


@dataclass(frozen=True)
class Backbone:
    """names: short names of sizes, as in {small: 384x12}.

    width: channels; of stage 1 of swin, inner ones of stage 1 of resnet. widths: a list in place of
    width. depth: blocks of vit;
    stages: [least, most] blocks of each stage of swin and resnet. head_dim, mlp_ratio and
    drop_path are of vit and swin, layer_scale of vit, window of swin, norm_groups of resnet.

    small_bias: the smallest size is drawn about small_bias ** 2 times as often as the largest.
    init: `torch` leaves linear layers at PyTorch's default (short runs move then).
    """

    name: Annotated[str, OneOf(ARCHITECTURES)] = "vit"
    width: Range = Range(384, 1024, 64)
    widths: tuple[Count, ...] = ()
    depth: Range = Range(12, 24, 1)
    stages: tuple[tuple[Count, Count], ...] = ((2, 2), (2, 2), (6, 18), (2, 2))
    patch_size: Count = 16
    head_dim: Count = 64
    mlp_ratio: Count = 4
    window: Annotated[int, Bounds(2)] = 7
    norm_groups: Count = 32
    layer_scale: Positive = 1e-5
    drop_path: Annotated[float, Bounds(0, 1, open_high=True)] = 0.2
    small_bias: Annotated[float, Bounds(1)] = 3.0
    init: Literal["published", "torch"] = "published"
    names: Mapping[str, str] = field(default_factory=dict)
    activation_checkpointing: bool = False
