"""What a recipe says about its backbone: the section `backbone`, and the sizes in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from poa_ds.model.architectures import ARCHITECTURES
from poa_ds.system.typed_yaml import Bounds, Count, CountOrNone, OneOf, Positive

COLOURS = 3  # channels of ordinary images

Positions = Literal["learned", "rope", "none"]
QkvBias = Literal["full", "no_key", "none"]
Norms = Literal["shared", "per_width"]


@dataclass(frozen=True)
class Range:
    """min, min + step, ..., max."""

    min: Count
    max: Count
    step: Count


@dataclass(frozen=True)
class Template:
    """What tucker makes its matrices from (docs/methods/sweet.md)."""

    # along matrices, rows and columns; 0: half of them
    ranks: tuple[CountOrNone, CountOrNone, CountOrNone] = (0, 0, 0)
    # channels of the template are scaled by 1 - noise to 1 + noise, anew for each slot
    noise: Annotated[float, Bounds(0, 1, open_high=True)] = 0.0


@dataclass(frozen=True)
class Backbone:
    """The family of networks (docs/method.md 2); swin and resnet have stages, others a depth."""

    name: Annotated[str, OneOf(ARCHITECTURES)] = "vit"
    # channels; of stage 1 of swin, inner ones of stage 1 of resnet
    width: Range = Range(384, 1024, 64)
    widths: tuple[Count, ...] = ()  # a list in place of width
    depth: Range = Range(12, 24, 1)  # blocks of vit and tucker
    # [least, most] blocks of each stage of swin and resnet
    stages: tuple[tuple[Count, Count], ...] = ((2, 2), (2, 2), (6, 18), (2, 2))
    patch_size: Count = 16
    head_dim: Count = 64  # of vit, tucker and swin, as are mlp_ratio and drop_path
    mlp_ratio: Count = 4
    registers: CountOrNone = 0  # of vit: tokens that stand for no patch, left out of the features
    norm_eps: Positive = 1e-6  # of vit
    norms: Norms = "shared"  # of vit; per_width: each width has weight and bias of every norm
    # of vit: a learned table, rotary as in DINOv3 (of patches; tokens before them have none), none
    positions: Positions = "learned"
    qkv_bias: QkvBias = "full"  # of vit: DINOv3's keys have no bias, or nothing of the layer
    # of vit: units of the intact network's gated MLP (SwiGLU), in proportion those of a slice, in
    # eights; 0: GELU and mlp_ratio
    swiglu: CountOrNone = 0
    window: Annotated[int, Bounds(2)] = 7  # of swin
    # of swin: channels that patches are projected to and normalised over, the first of which go
    # on; 0: as many as the widest size has
    projected: CountOrNone = 0
    # of swin: of each block of stage 3 whether its windows are shifted; []: of every second
    shifted: tuple[bool, ...] = ()
    norm_groups: Count = 32  # of resnet
    outer: CountOrNone = 0  # of resnet: channels that leave stage 1; 0: twice the widest inner ones
    layer_scale: Positive = 1e-5  # of vit and tucker, as is residual
    # what blocks add to is kept in the recipe's `precision`, or in fp32 (docs/method.md 2)
    residual: Literal["precision", "fp32"] = "fp32"
    template: Template = field(default_factory=Template)  # of tucker
    drop_path: Annotated[float, Bounds(0, 1, open_high=True)] = 0.2
    # a slice's input is scaled by (width / active width) ** input_scale; 1 is published
    input_scale: Annotated[float, Bounds(0, 1)] = 1.0
    # the smallest size is drawn about small_bias ** 2 times as often as the largest
    small_bias: Annotated[float, Bounds(1)] = 3.0
    # torch: linear layers start at PyTorch's default; short runs move then
    init: Literal["published", "torch"] = "published"
    # short names of sizes, as in {small: 384x12}
    names: Mapping[str, str] = field(default_factory=dict)
    activation_checkpointing: bool = False
