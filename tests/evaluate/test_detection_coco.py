"""COCO's files and average precision, beside a slow one; and what is wrong with files, said."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poa_ds.evaluate.detection import annotations, coco
from poa_ds.evaluate.detection.annotations import Annotations, Picture, Thing
from poa_ds.system.errors import UserError
from tests.support.shapes import make_coco


def truth_of(boxes: dict[int, list[tuple[int, tuple]]]) -> Annotations:
    """Image -> [(category, box)]; images are 100 x 100."""
    pictures = tuple(
        Picture(n, f"{n}.png", 100, 100, tuple(Thing(c, b, None, None, False) for c, b in own))
        for n, own in boxes.items()
    )
    return Annotations(Path("a.json"), Path(), pictures, {3: "rectangle", 7: "disc"}, 0)


def result(image: int, category: int, box: tuple, score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("coco"), train=3, val=6)


def read(root: Path, split: str = "val", *, masks: bool = True) -> Annotations:
    return annotations.read(*annotations.find(root, split), masks=masks)


def test_the_truth_as_result_is_100_and_nothing_is_0(shapes: Path) -> None:
    truth = read(shapes)
    everything = [
        result(p.id, t.category, t.box, 0.5)
        | {"segmentation": coco.encode(coco.mask(t, p)[None])[0]}
        for p in truth.pictures
        for t in p.things
    ]
    for kind in ("bbox", "segm"):
        found = coco.scores(truth, everything, kind, draws=3)
        # this program rounds: a precision of 1 is 1 less the least double
        assert {round(value, 6) for value, _ in found.values()} == {100.0}
        assert found["ap"][1] == pytest.approx(0, abs=1e-6)
        nothing = coco.scores(truth, [], kind, draws=3)
        assert {value for value, _ in nothing.values()} == {0.0} and nothing.keys() == found.keys()


def test_a_shifted_box_counts_up_to_the_iou_that_it_has() -> None:
    """8 of 10 columns: 80 / 120 = 0.667 is enough for the IoUs 0.50, 0.55, 0.60 and 0.65 of ten."""
    truth = truth_of({1: [(3, (10.0, 10.0, 10.0, 10.0))]})
    found = coco.scores(truth, [result(1, 3, (12.0, 10.0, 10.0, 10.0), 0.9)], "bbox")
    assert found["ap"][0] == pytest.approx(40) and found["ap50"][0] == pytest.approx(100)
    assert found["ap75"][0] == 0 and "ap_large" not in found  # there is none


def test_a_box_of_another_category_is_none() -> None:
    truth = truth_of({1: [(3, (10.0, 10.0, 10.0, 10.0))], 2: []})
    found = coco.scores(truth, [result(1, 7, (10.0, 10.0, 10.0, 10.0), 0.9)], "bbox")
    assert found["ap"][0] == 0


def slow_ap(truth: Annotations, results: list[dict], iou: float) -> float:
    """By the definition: the most precise at each of 101 recalls, mean over categories."""
    found = []
    for category in truth.categories:
        boxes = {p.id: [t.box for t in p.things if t.category == category] for p in truth.pictures}
        count = sum(map(len, boxes.values()))
        taken: set[tuple[int, int]] = set()
        right = []
        own = [r for r in results if r["category_id"] == category]
        for one in sorted(own, key=lambda r: -r["score"]):
            ious = [
                (overlap(one["bbox"], box), n)
                for n, box in enumerate(boxes[one["image_id"]])
                if (one["image_id"], n) not in taken
            ]
            best, n = max(ious, default=(0.0, -1))
            right.append(best >= iou)
            taken |= {(one["image_id"], n)} if best >= iou else set()
        hits = np.cumsum(right)
        precision, recall = hits / np.arange(1, len(hits) + 1), hits / count
        at = [max(precision[recall >= x], default=0.0) for x in np.linspace(0, 1, 101)]
        found.append(np.mean(at))
    return 100 * float(np.mean(found))


def overlap(a: tuple, b: tuple) -> float:
    sides = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def test_average_precision_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    boxes = {
        n: [(int(rng.choice([3, 7])), tuple(rng.uniform(5, 45, 4).tolist())) for _ in range(4)]
        for n in range(1, 9)
    }
    results = []
    for n, own in boxes.items():
        for category, box in own:
            for _ in range(int(rng.integers(3))):
                moved = np.array(box) + rng.normal(0, 3, 4)
                results.append(result(n, category, tuple(moved.tolist()), float(rng.random())))
        results.append(result(n, 3, tuple(rng.uniform(5, 45, 4).tolist()), float(rng.random())))
    truth = truth_of(boxes)
    found = coco.scores(truth, results, "bbox")
    assert 5 < found["ap50"][0] < 95
    for name, iou in (("ap50", 0.5), ("ap75", 0.75)):
        assert found[name][0] == pytest.approx(slow_ap(truth, results, iou), abs=1e-6)
    value, error = found["ap50"]
    assert 0.5 < error < value


def test_masks_of_all_three_kinds_are_the_same() -> None:
    """A rectangle as polygon, as counts and as compressed counts."""
    picture = Picture(1, "a.png", 8, 6, ())
    wanted = np.zeros((6, 8), np.uint8)
    wanted[1:4, 2:5] = 1
    polygon = [[2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 2.0, 4.0]]
    counts = {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 20]}
    compressed = coco.encode(wanted[None])[0]
    for segmentation in (polygon, counts, compressed):
        thing = Thing(3, (2, 1, 3, 3), segmentation, None, False)
        assert np.array_equal(coco.mask(thing, picture), wanted)
    with pytest.raises(UserError, match=r"a mask of a.png has the size \[6, 8\].*\[8, 8\]"):
        coco.mask(thing, replace(picture, height=8))


def test_a_file_is_read_as_it_is(shapes: Path) -> None:
    truth = read(shapes)
    assert truth.labels == {3: 1, 7: 2} and len(truth.pictures) == 6 and not truth.dropped
    assert all(
        thing.area == coco.mask(thing, p).sum() for p in truth.pictures for thing in p.things
    )


def put(content: dict, place: tuple, value: Any) -> None:
    *way, last = place
    for key in way:
        content = content[key]
    if value is None:
        del content[last]
    else:
        content[last] = value


def test_empty_boxes_are_dropped_and_crowds_not_learnt_from(tmp_path: Path) -> None:
    root = make_coco(tmp_path, train=2, val=1, most=1)
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    found = read(root, "train")
    assert found.dropped == 1 and found.to_learn_from() == []


MISTAKES = {
    "no list annotations": [(("annotations",), None)],
    "no list images, categories": [(("images",), None), (("categories",), None)],
    "list categories is empty": [(("categories",), [])],
    "1 annotations of an unknown image_id: annotation 1 of image_id 99": [
        (("annotations", 0, "image_id"), 99)
    ],
    "of an unknown category_id: annotation 1 of category_id 4": [
        (("annotations", 0, "category_id"), 4)
    ],
    r"annotation 1: bbox is \[1, 2\]: expected \[left": [(("annotations", 0, "bbox"), [1, 2])],
    "annotation 1 has no segmentation: --boxes": [(("annotations", 0, "segmentation"), None)],
    "annotation 1 has an unknown kind of": [(("annotations", 0, "segmentation"), [[1, 2]])],
    "1 numbers of an image stand twice: 1": [(("images", 1, "id"), 1)],
    "image 1 needs file_name, width and height": [(("images", 0, "width"), None)],
    "leads out of the folder": [(("images", 0, "file_name"), "../a.png")],
    r"lacks 2 images of .*: a.png, b.png": [
        (("images", 0, "file_name"), "a.png"),
        (("images", 1, "file_name"), "b.png"),
    ],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_what_is_wrong_with_a_file_is_said(message: str, shapes: Path, tmp_path: Path) -> None:
    path, folder = annotations.find(shapes, "train")
    content = json.loads(path.read_text())
    for place, value in MISTAKES[message]:
        put(content, place, value)
    (tmp_path / "changed.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        annotations.read(tmp_path / "changed.json", folder, masks=True)


def test_boxes_alone_need_no_segmentation(shapes: Path, tmp_path: Path) -> None:
    path, folder = annotations.find(shapes, "train")
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        del entry["segmentation"], entry["area"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    found = annotations.read(tmp_path / "boxes.json", folder, masks=False)
    perfect = [result(p.id, t.category, t.box, 1.0) for p in found.pictures for t in p.things]
    assert coco.scores(found, perfect, "bbox", draws=3)["ap"][0] == pytest.approx(100)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "instances_val.*is needed; there: none"),
        (lambda path: path.write_text("{"), "is no JSON"),
        (lambda path: path.write_text("[]"), "expected an object"),
        (lambda path: (path.parent / "instances_val2014.json").write_text("{}"), "2014.*2017"),
        (lambda path: (path.parents[1] / "val2017").rename(path.parents[1] / "x"), "are in none"),
    ],
)
def test_a_folder_that_is_no_data_set_is_told_so(
    damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    root = make_coco(tmp_path, train=1, val=1)
    damage(root / "annotations" / "instances_val2017.json")
    with pytest.raises(UserError, match=message):
        read(root)
