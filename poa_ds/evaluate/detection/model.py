"""torchvision's Mask R-CNN, or Faster R-CNN where only boxes are wanted, around a plain network;
or with Cascade R-CNN's heads (cascade.py).

Anchors and sizes follow the strides of the levels, so that networks of other patches see things of
their own scale: a level's anchors are 8 strides long, in three shapes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from poa_ds.engine.networks import Networks
from poa_ds.evaluate.detection import cascade
from poa_ds.evaluate.detection.pyramid import Features
from poa_ds.evaluate.detection.settings import Heads
from poa_ds.model import form
from poa_ds.model import shape as shapes
from poa_ds.model.options import COLOURS, Backbone

ANCHOR_STRIDES, RATIOS = 8, (0.5, 1.0, 2.0)
ROI_SIDE = 7  # places of a box's features, as torchvision pools them


def detector(
    features: Features,
    categories: int,
    *,
    boxes: bool,
    heads: Heads,
    short_sides: Sequence[int],
    long_side: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> FasterRCNN:
    """Images [(3, H, W)] of 0 to 1 -> losses, or what is found; boxes: no masks.

    Each image is scaled so that its short side is one of `short_sides` (drawn in training, else the
    last), unless its long side were longer than `long_side`; batches are padded at right and
    bottom.
    """
    strides = [*features.strides, 2 * features.strides[-1]]
    sizes = tuple((ANCHOR_STRIDES * stride,) for stride in strides)
    options: dict[str, Any] = {
        "min_size": tuple(short_sides),
        "max_size": long_side,
        "image_mean": list(mean),
        "image_std": list(std),
        "rpn_anchor_generator": AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        "size_divisible": features.strides[-1],
    }
    width, classes = features.out_channels, categories + 1
    if heads == "plain":
        # torchvision's own heads where the levels have 256 channels; else as much narrower
        options["box_head"] = TwoMLPHead(width * ROI_SIDE**2, 4 * width)
        options["box_predictor"] = FastRCNNPredictor(4 * width, classes)
        return _whole(features, classes, boxes, options)
    each = []  # detectors of one head, as torchvision makes it of a threshold and a coder's weights
    for stage in cascade.STAGES:
        own = {"box_fg_iou_thresh": stage.iou, "box_bg_iou_thresh": stage.iou}
        own |= {"bbox_reg_weights": stage.coder, "box_head": cascade.box_head(width, ROI_SIDE)}
        own |= {"box_predictor": cascade.box_predictor(4 * width, classes)}
        each.append(_whole(features, classes, boxes, options | own))
    found = each[0]
    found.roi_heads = cascade.Cascade([one.roi_heads for one in each])
    return found


def _whole(features: Features, classes: int, boxes: bool, options: Mapping[str, Any]) -> FasterRCNN:
    if boxes:
        return FasterRCNN(features, **options)
    width = features.out_channels
    masks = MaskRCNNHeads(width, (width,) * 4, dilation=1)
    predictor = MaskRCNNPredictor(width, width, classes)
    return MaskRCNN(features, **options, mask_head=masks, mask_predictor=predictor)


def drop_branches(plain: nn.Module, rate: float) -> None:
    """Stochastic depth in training: branches are left out, image by image, in `rate` of the last
    block's cases, in none of the first's, in between linearly; what stays is enlarged as much.
    """
    branches = plain.branches()
    for place, ends in enumerate(branches):
        share = rate * place / max(len(branches) - 1, 1)
        for end in ends if share else ():
            end.register_forward_hook(_dropping(share))


def _dropping(share: float) -> Any:
    def hook(module: nn.Module, _: Any, x: Tensor) -> Tensor:
        if not module.training:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= share
        return x * (kept.to(x.dtype) / (1 - share))

    return hook


class Detecting(Networks):
    """A detector as the engine's networks: nothing is averaged.

    names: of the plain network's parameters, as layer-wise decay reads them (`backbone_names`).
    """

    def __init__(self, student: FasterRCNN, names: Mapping[str, str], decay_depth: int) -> None:
        super().__init__(student)
        self._names = {f"backbone.plain.{name}": f"backbone.{own}" for name, own in names.items()}
        student.backbone.decay_depth = decay_depth

    def trained(self) -> dict[str, nn.Parameter]:
        return {self._names.get(n, n): p for n, p in self.student.named_parameters()}


def backbone_names(
    state: Mapping[str, Tensor], options: Backbone, image_size: int
) -> dict[str, str]:
    """Name of each tensor of a plain network -> its name in an elastic network of that one size.

    Found by where numbers go that stand for the tensors; of several, any: all are of one layer.
    """
    numbered = {name: torch.full_like(t, n + 1) for n, (name, t) in enumerate(state.items())}
    ours = form.of(options.name).from_plain(
        numbered, shapes.of(options, image_size, channels=COLOURS)
    )
    numbers = {int(tensor.max()): name for name, tensor in ours.items()}
    return {name: numbers[n] for n, name in enumerate(state, start=1)}
