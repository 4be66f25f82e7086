"""Cascade R-CNN's heads against slow loops: what each learns from, its losses, what is found."""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_align

from poa_ds.evaluate import floors
from poa_ds.evaluate.detection import annotations, coco, pictures
from poa_ds.evaluate.detection.cascade import Cascade
from poa_ds.evaluate.detection.pictures import Target
from poa_ds.evaluate.detection.settings import with_protocol
from poa_ds.evaluate.detection.task import found
from poa_ds.evaluate.detection.training import losses
from tests.distributed.programs.detection import SIZE, task
from tests.evaluate.test_detection_training import made_detector
from tests.support.shapes import make_coco
from tests.support.teachers import make_teacher

# threshold, factors of the corrections, weight of the losses: as published
PUBLISHED = (
    (0.5, (10, 10, 5, 5), 1.0),
    (0.6, (20, 20, 10, 10), 0.5),
    (0.7, (30, 30, 15, 15), 0.25),
)
SIDES = [(64, 64), (64, 56)]
CLASSES = 3  # with none of them


@pytest.fixture(scope="module")
def made() -> Cascade:
    return made_detector(boxes=False, heads="cascade").roi_heads


@pytest.fixture
def heads(made: Cascade) -> Cascade:
    return copy.deepcopy(made)


def features() -> dict[str, Tensor]:
    """Random maps of two images of 64 x 64, at strides 2 to 16."""
    torch.manual_seed(3)
    return {str(i): torch.randn(2, 16, 32 >> i, 32 >> i, requires_grad=True) for i in range(4)}


def targets() -> list[Target]:
    """Two things in the first image, one in the second."""
    boxes = [torch.tensor([[4.0, 6, 34, 36], [30, 30, 62, 60]]), torch.tensor([[10.0, 8, 50, 44]])]
    labels = [torch.tensor([1, 2]), torch.tensor([2])]
    masks = [torch.zeros(2, 64, 64, dtype=torch.uint8), torch.zeros(1, 64, 56, dtype=torch.uint8)]
    masks[0][0, 8:30, 4:30] = masks[0][1, 30:60, 32:62] = masks[1][0, 10:44, 12:40] = 1
    parts = zip(boxes, labels, masks, strict=True)
    return [{"boxes": b, "labels": c, "masks": m} for b, c, m in parts]


def proposals() -> list[Tensor]:
    """Of the things, ever shorter: each overlaps its thing by 0.95, 0.8, 0.65, 0.55 and 0.45."""
    return [
        torch.cat([torch.stack([shorter(box, share) for box in t["boxes"]]) for share in SHARES])
        for t in targets()
    ]


SHARES = (0.95, 0.8, 0.65, 0.55, 0.45)


def shorter(box: Tensor, share: float) -> Tensor:
    left, top, right, bottom = box.tolist()
    return torch.tensor([left, top, right, top + share * (bottom - top)])


def overlap(a: list[float], b: list[float]) -> float:
    wide = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    high = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return wide * high / (areas - wide * high)


def things(boxes: Tensor, target: Target, threshold: float) -> list[int]:
    """Number of each box's thing, -1 where none overlaps it by so much."""
    numbers = []
    for box in boxes.tolist():
        overlaps = [overlap(box, truth) for truth in target["boxes"].tolist()]
        best = max(range(len(overlaps)), key=overlaps.__getitem__)
        numbers.append(best if overlaps[best] >= threshold else -1)
    return numbers


@pytest.mark.parametrize("number", range(3))
def test_each_head_learns_from_what_overlaps_by_its_own_threshold(
    heads: Cascade, number: int
) -> None:
    threshold, factors, _ = PUBLISHED[number]
    boxes, matched, labels, _ = heads.heads[number].select_training_samples(proposals(), targets())
    assert [(own > 0).sum().item() for own in labels] == [2 * (5 - number), 5 - number]
    for own, found_labels, found_things, target in zip(
        boxes, labels, matched, targets(), strict=True
    ):
        wanted = things(own, target, threshold)
        assert found_labels.tolist() == [target["labels"][n] if n >= 0 else 0 for n in wanted]
        positive = found_labels > 0
        assert found_things[positive].tolist() == [n for n in wanted if n >= 0]
    assert heads.heads[number].box_coder.weights == factors


def decoded(corrections: Tensor, boxes: Tensor, factors: tuple[float, ...]) -> Tensor:
    rows = []
    for (dx, dy, dw, dh), box in zip(corrections, boxes.tolist(), strict=True):
        wide, high = box[2] - box[0], box[3] - box[1]
        x = box[0] + wide / 2 + dx / factors[0] * wide
        y = box[1] + high / 2 + dy / factors[1] * high
        half = wide / 2 * (dw / factors[2]).exp(), high / 2 * (dh / factors[3]).exp()
        rows.append(torch.stack([x - half[0], y - half[1], x + half[0], y + half[1]]))
    return torch.stack(rows)


def clipped(boxes: Tensor, side: tuple[int, int]) -> Tensor:
    limits = (side[1], side[0]) * 2
    rows = [[min(max(x, 0.0), m) for x, m in zip(b, limits, strict=True)] for b in boxes.tolist()]
    return torch.tensor(rows).reshape(-1, 4)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """1 - overlap + the share of the box around both that neither covers."""
    low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    both = (high - low).clamp(min=0).prod()
    either = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both
    around = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).prod()
    return 1 - both / either + (around - either) / around


def masks(head: RoIHeads, maps: dict[str, Tensor], image: int, boxes: Tensor) -> Tensor:
    """(n, classes, 28, 28) in 0 to 1, of boxes of one image."""
    places = [boxes if i == image else boxes[:0] for i in range(len(SIDES))]
    return head.mask_predictor(head.mask_head(head.mask_roi_pool(maps, places, SIDES))).sigmoid()


def slow_losses(heads: Cascade, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the definitions, a box after the other; layers and pooling alone are the heads' own."""
    terms, given = {}, proposals()
    for number, (threshold, factors, weight) in enumerate(PUBLISHED, 1):
        head = heads.heads[number - 1]
        every = [torch.cat([own, t["boxes"]]) for own, t in zip(given, targets(), strict=True)]
        x = head.box_head(head.box_roi_pool(maps, every, SIDES))
        logits, corrections = head.box_predictor.cls_score(x), head.box_predictor.bbox_pred(x)
        own = [things(b, t, threshold) for b, t in zip(every, targets(), strict=True)]
        classes, boxes, outlines, row = [], [], [], 0
        after: list[Tensor] = []
        for i, (target, numbers) in enumerate(zip(targets(), own, strict=True)):
            moved = decoded(corrections[row : row + len(numbers)], every[i], factors)
            row += len(numbers)
            true = len(target["boxes"])  # the last ones: not passed on
            after.append(clipped(moved[:-true].detach(), SIDES[i]))
            kept = [n for n, thing in enumerate(numbers) if thing >= 0]
            inner = masks(head, maps, i, every[i][kept])
            for n, of_box in zip(kept, inner, strict=True):
                label, thing = int(target["labels"][numbers[n]]), target["masks"][numbers[n]]
                inside, box = of_box[label], every[i][n : n + 1]
                there = roi_align(thing[None, None].float(), [box], (28, 28))[0, 0]
                outlines.append(-(there * inside.log() + (1 - there) * (1 - inside).log()).mean())
                boxes.append(giou(moved[n], target["boxes"][numbers[n]]))
            classes += [int(target["labels"][n]) if n >= 0 else 0 for n in numbers]
        shares = logits.exp() / logits.exp().sum(1, keepdim=True)
        classified = [-shares[n, label].log() for n, label in enumerate(classes)]
        terms[f"loss_classifier_{number}"] = weight * torch.stack(classified).mean()
        terms[f"loss_box_reg_{number}"] = weight * 10 * torch.stack(boxes).sum() / len(classes)
        terms[f"loss_mask_{number}"] = weight * torch.stack(outlines).mean()
        given = after
    return terms


def gradients(heads: Cascade, maps: dict[str, Tensor], terms: dict[str, Tensor]) -> list[Tensor]:
    """Of the finest map, which alone boxes so small are read from, and of all parameters."""
    return list(torch.autograd.grad(sum(terms.values()), [maps["0"], *heads.parameters()]))


def test_losses_and_gradients_are_those_of_the_definitions(heads: Cascade) -> None:
    """The first head moves boxes to the right, some beyond the border."""
    heads.heads[0].box_predictor.bbox_pred.bias.data[0] = 1.5
    maps = features()
    nothing, terms = heads.train()(maps, proposals(), SIDES, targets())
    wanted = slow_losses(heads, maps)
    assert nothing == [] and terms.keys() == wanted.keys() and len(terms) == 9
    torch.testing.assert_close(terms, wanted, rtol=1e-4, atol=1e-6)
    pairs = zip(gradients(heads, maps, terms), gradients(heads, maps, wanted), strict=True)
    for gradient, slow in pairs:
        apart = (gradient - slow).norm() / slow.norm()  # by rounding in fp32 alone
        assert slow.norm() > 0 and apart < 1e-3


@torch.no_grad()
def test_scores_and_masks_are_means_over_three_heads_and_boxes_are_corrected_thrice(
    heads: Cascade,
) -> None:
    """The boxes overlap too little to suppress each other, every class has a score above 0.05."""
    maps = features()
    given = [torch.tensor([[2.0, 4, 30, 28], [30, 34, 60, 62]]), torch.tensor([[10.0, 8, 50, 44]])]
    results, terms = heads.eval()(maps, given, SIDES)
    assert terms == {} and len(results) == 2
    boxes, scores = given, []
    for head, (_, factors, _) in zip(heads.heads, PUBLISHED, strict=True):
        x = head.box_head(head.box_roi_pool(maps, boxes, SIDES))
        logits = head.box_predictor.cls_score(x)
        scores.append(logits.exp() / logits.exp().sum(1, keepdim=True))
        moved = decoded(head.box_predictor.bbox_pred(x), torch.cat(boxes), factors)
        boxes = [clipped(b, s) for b, s in zip(moved.split([2, 1]), SIDES, strict=True)]
    mean = (scores[0] + scores[1] + scores[2]) / 3
    assert not torch.allclose(mean, scores[0], atol=1e-3)
    for i, (own, rows) in enumerate(zip(results, mean.split([2, 1]), strict=True)):
        wanted = sorted(
            ((rows[n, label].item(), n, label) for n in range(len(rows)) for label in (1, 2)),
            reverse=True,
        )
        assert own["labels"].tolist() == [label for _, _, label in wanted]
        torch.testing.assert_close(own["scores"], torch.tensor([s for s, _, _ in wanted]))
        last = torch.stack([boxes[i][n] for _, n, _ in wanted])
        torch.testing.assert_close(own["boxes"], last, rtol=1e-4, atol=1e-3)
        outlines = [masks(head, maps, i, own["boxes"]) for head in heads.heads]
        for n, label in enumerate(own["labels"].tolist()):
            inside = sum(x[n, label] for x in outlines) / 3
            torch.testing.assert_close(own["masks"][n, 0], inside)


@torch.no_grad()
def test_where_nothing_is_proposed_nothing_is_found(heads: Cascade) -> None:
    results, _ = heads.eval()(features(), [torch.zeros(0, 4)] * 2, SIDES)
    assert [len(one["boxes"]) for one in results] == [0, 0]
    assert [tuple(one["masks"].shape) for one in results] == [(0, 1, 28, 28)] * 2


class Truth(nn.Module):
    """In the place of proposals: the things of each image. now: those of the last."""

    def __init__(self, every: Iterator[Target]) -> None:
        super().__init__()
        self.every = every

    def forward(self, *_: object) -> tuple[list[Tensor], dict[str, Tensor]]:
        self.now = next(self.every)
        return [self.now["boxes"]], {}


class Knowing(nn.Module):
    """Says of each proposal what it is, and corrects nothing."""

    def __init__(self, truth: Truth) -> None:
        super().__init__()
        self.truth = (truth,)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        [truth] = self.truth
        return 9.0 * F.one_hot(truth.now["labels"], CLASSES), torch.zeros(len(x), 4)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("coco"), train=4, val=4, seed=5)


def test_truth_as_proposals_that_nothing_corrects_is_found_as_it_is(
    heads: Cascade, shapes: Path
) -> None:
    val = annotations.read(*annotations.find(shapes, "val"), masks=False)
    student = made_detector(boxes=True, heads="cascade").eval()
    truth = Truth(pictures.target_of(val, p, masks=False) for p in val.pictures)
    student.rpn = truth
    for head in student.roi_heads.heads:
        head.box_predictor = Knowing(truth)
    images = [(p, pictures.image_of(val, p)) for p in val.pictures]
    results = found(student, iter(images), val.labels, most=len(images))
    assert coco.scores(val, results, "bbox", draws=2)["ap"][0] == pytest.approx(100.0)

    for head in heads.heads:  # and no head has anything to learn of the boxes
        nn.init.zeros_(head.box_predictor.bbox_pred.weight)
        nn.init.zeros_(head.box_predictor.bbox_pred.bias)
    _, terms = heads.train()(features(), [t["boxes"] for t in targets()], SIDES, targets())
    assert all(terms[f"loss_box_reg_{n}"].abs() < 1e-5 for n in (1, 2, 3))


def test_every_part_of_it_learns(shapes: Path) -> None:
    """One picture thrice, few boxes of it: the draws are the same each time."""
    train = annotations.read(*annotations.find(shapes, "train"), masks=True)
    networks, [picture, *_] = nn.Module(), train.pictures
    networks.student = made_detector(boxes=False, heads="cascade").train()
    for head in networks.student.roi_heads.heads:
        head.fg_bg_sampler.batch_size_per_image = 64
    images = [pictures.image_of(train, picture)]
    things = [pictures.target_of(train, picture, masks=True)]
    optimizer, totals = torch.optim.AdamW(networks.parameters(), lr=1e-3), []
    for _ in range(3):
        total, terms = losses(networks, images, things, 0, 0, 0)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[2] < totals[0] and all(x.isfinite() for x in terms.values())
    assert all(p.grad.abs().sum() > 0 for p in networks.student.roi_heads.parameters())


@pytest.mark.parametrize(
    ("words", "heads", "epochs"),
    [
        ({}, "plain", 12.0),
        ({"heads": "cascade"}, "cascade", 12.0),
        ({"protocol": "poa"}, "cascade", 36.0),
        ({"protocol": "poa", "heads": "plain", "epochs": 0.5}, "plain", 0.5),
    ],
)
def test_a_protocol_gives_what_options_do_not(
    words: dict[str, object], heads: str, epochs: float
) -> None:
    given = {"protocol": "short", "heads": None, "epochs": None, "seed": 3} | words
    args = with_protocol(argparse.Namespace(**given))
    assert (args.heads, args.epochs, args.seed) == (heads, epochs, 3)


def test_rows_of_a_cascade_and_of_random_weights_have_names_of_their_own(
    shapes: Path, tmp_path: Path
) -> None:
    make_teacher(tmp_path / "run", seed=7)
    own = task(tmp_path, shapes)
    untrained = replace(own, reader=floors.untrained(own.reader))
    rows = [one._rows(SIZE, [], 0.0, []) for one in (own, untrained)]  # of nothing found
    names = [[row.name for row in of_task] for of_task in rows]
    assert all(name.startswith("detection_cascade_") for name in names[0])
    assert "detection_cascade_box_ap" in names[0] and "detection_cascade_mask_ap50" in names[0]
    assert names[1] == [f"{name}_random_weights" for name in names[0]]
    assert [row.floor_of for row in rows[1]] == names[0]
    assert own.groups.folder != untrained.groups.folder
    plain = [one.networks(SIZE).student.backbone.plain.patch_embed for one in (own, untrained)]
    assert not torch.equal(*(one.proj.weight for one in plain))
