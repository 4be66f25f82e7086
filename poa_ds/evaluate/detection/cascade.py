"""Cascade R-CNN's heads (arXiv 1712.00726): three in a row, each on the boxes of the one before.

Each is torchvision's RoIHeads with a threshold and a coder of its own, so that matching, sampling
and what is kept at last are torchvision's; here is what happens between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from poa_ds.evaluate.detection.pictures import Target
from poa_ds.evaluate.detection.pyramid import MapNorm

CONVOLUTIONS = 4
GIOU_WEIGHT = 10.0  # of the boxes' loss, in the published settings of these heads with GIoU
Levels = Mapping[str, Tensor]  # of a pyramid, each (B, channels, rows, columns)
Sides = Sequence[tuple[int, int]]  # rows and columns of each image, without padding


@dataclass(frozen=True)
class Stage:
    """iou: from which on a box is a thing. coder: factors of x, y, width and height of what a box
    is corrected by. weight: of all its losses.
    """

    iou: float
    coder: tuple[float, float, float, float]
    weight: float


STAGES = (
    Stage(0.5, (10.0, 10.0, 5.0, 5.0), 1.0),
    Stage(0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    Stage(0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)


def box_head(channels: int, side: int) -> nn.Module:
    """(n, channels, side, side) -> (n, 4 x channels): four convolutions and a matrix.

    Normalised over the channels of each place, which no other box, image or rank changes; published
    is SyncBN.
    """
    convolutions = [channels] * CONVOLUTIONS
    return FastRCNNConvFCHead((channels, side, side), convolutions, [4 * channels], MapNorm)


def box_predictor(width: int, classes: int) -> nn.Module:
    """(n, width) -> logits (n, classes) and one correction (n, 4), whatever the class is."""
    predictor = FastRCNNPredictor(width, classes)
    predictor.bbox_pred = nn.Linear(width, 4)
    return predictor


class Cascade(nn.Module):
    """In the place of a detector's RoIHeads: one of them for each of `stages`."""

    def __init__(self, heads: Sequence[RoIHeads], stages: Sequence[Stage] = STAGES) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.weights = [stage.weight for stage in stages]

    def forward(
        self,
        features: Levels,
        proposals: list[Tensor],
        sides: Sides,
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[Target], dict[str, Tensor]]:
        """([], losses by name) in training, else (boxes, labels, scores, masks of each image, {}).

        proposals: (n, 4) of each image, as x and y of two corners.
        """
        if not self.training:
            return self._found(features, proposals, sides), {}
        assert targets is not None
        losses = {}
        for number, (head, weight) in enumerate(zip(self.heads, self.weights, strict=True), 1):
            terms, proposals = _learnt(head, features, proposals, sides, targets)
            losses |= {f"{name}_{number}": weight * x for name, x in terms.items()}
        return [], losses

    def _found(self, features: Levels, proposals: list[Tensor], sides: Sides) -> list[Target]:
        """Boxes of the last head, scores as means over all of a box and those that it came from."""
        scores, seen = [], proposals
        for head in self.heads:
            proposals = seen
            logits, corrections = _predicted(head, features, proposals, sides)
            scores.append(logits.softmax(-1))
            seen = _refined(head, corrections, proposals, sides)
        means = torch.stack(scores).mean(0)
        every = corrections.repeat(1, means.shape[1])  # torchvision's are of each class
        parts = head.postprocess_detections(means.log(), every, proposals, sides)
        names = ("boxes", "scores", "labels")
        found = [dict(zip(names, one, strict=True)) for one in zip(*parts, strict=True)]
        if head.has_mask():
            for one, masks in zip(found, self._masks(features, found, sides), strict=True):
                one["masks"] = masks
        return found

    def _masks(self, features: Levels, found: Sequence[Target], sides: Sides) -> list[Tensor]:
        """Of the boxes of each image (n, 1, m, m) in 0 to 1, as means over the heads."""
        boxes, labels = ([one[name] for one in found] for name in ("boxes", "labels"))
        every = [
            maskrcnn_inference(_outlined(head, features, boxes, sides), labels)
            for head in self.heads
        ]
        return [torch.stack(of_image).mean(0) for of_image in zip(*every, strict=True)]


def _predicted(
    head: RoIHeads, features: Levels, boxes: list[Tensor], sides: Sides
) -> tuple[Tensor, Tensor]:
    """(logits (n, classes), corrections (n, 4)) of the boxes of all images."""
    return head.box_predictor(head.box_head(head.box_roi_pool(features, boxes, sides)))


def _outlined(head: RoIHeads, features: Levels, boxes: list[Tensor], sides: Sides) -> Tensor:
    """Masks' logits (n, classes, m, m) of the boxes of all images."""
    return head.mask_predictor(head.mask_head(head.mask_roi_pool(features, boxes, sides)))


def _refined(
    head: RoIHeads, corrections: Tensor, proposals: list[Tensor], sides: Sides
) -> list[Tensor]:
    """Boxes of each image for the next head, which are given: no gradient passes through them."""
    boxes = head.box_coder.decode(corrections.detach(), proposals).reshape(-1, 4)
    parts = boxes.split([len(own) for own in proposals])
    return [clip_boxes_to_image(own, side) for own, side in zip(parts, sides, strict=True)]


def _learnt(
    head: RoIHeads,
    features: Levels,
    proposals: list[Tensor],
    sides: Sides,
    targets: Sequence[Target],
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """(losses, boxes for the next head) of the proposals that are drawn, the true boxes with them.

    A true box is not passed on: the next head has it anyway.
    """
    proposals, matched, labels, _ = head.select_training_samples(proposals, targets)
    logits, corrections = _predicted(head, features, proposals, sides)
    boxes = head.box_coder.decode(corrections, proposals).reshape(-1, 4)
    chosen = [own > 0 for own in labels]
    things = [own[there] for own, there in zip(matched, chosen, strict=True)]
    truth = torch.cat([t["boxes"][thing] for t, thing in zip(targets, things, strict=True)])
    terms = box_losses(logits, boxes, torch.cat(labels), truth)
    if head.has_mask():
        own = [boxes[there] for boxes, there in zip(proposals, chosen, strict=True)]
        masks, classes = ([t[name] for t in targets] for name in ("masks", "labels"))
        outlines = _outlined(head, features, own, sides)
        terms["loss_mask"] = maskrcnn_loss(outlines, own, masks, classes, things)
    after = _refined(head, corrections, proposals, sides)
    return terms, [
        new[~(old[:, None] == target["boxes"]).all(-1).any(-1)]
        for new, old, target in zip(after, proposals, targets, strict=True)
    ]


def box_losses(logits: Tensor, boxes: Tensor, labels: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the classes, GIoU of the boxes that are things; both per drawn box.

    logits: (n, classes); boxes: (n, 4); labels: (n,), 0 for none; truth: (m, 4), of the m things.
    """
    apart = generalized_box_iou_loss(boxes[labels > 0], truth, reduction="sum")
    return {
        "loss_classifier": F.cross_entropy(logits, labels),
        "loss_box_reg": GIOU_WEIGHT * apart / len(labels),
    }
