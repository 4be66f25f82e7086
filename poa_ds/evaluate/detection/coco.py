"""What pycocotools does: masks of annotations, run lengths of found masks, average precision."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from poa_ds.evaluate.detection.annotations import Annotations, Picture, Thing
from poa_ds.system.errors import UserError

Kind = Literal["bbox", "segm"]
# places of COCOeval.stats
METRICS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5}
MOST = 100  # results of an image that count
DRAWS = 100  # of the images, for errors
Result = dict[str, Any]  # image_id, category_id, bbox, score, and segmentation of masks


def mask(thing: Thing, picture: Picture) -> np.ndarray:
    """(height, width) uint8 of 0 and 1. UserError: run lengths of another size."""
    return run_lengths.decode(_encoded(thing, picture))


def _encoded(thing: Thing, picture: Picture) -> dict[str, Any]:
    found, sides = thing.segmentation, [picture.height, picture.width]
    if isinstance(found, list):
        return run_lengths.merge(run_lengths.frPyObjects(found, *sides))
    if list(found["size"]) != sides:
        raise UserError(
            f"a mask of {picture.name} has the size {found['size']}, the image is {sides}"
        )
    return run_lengths.frPyObjects(found, *sides) if isinstance(found["counts"], list) else found


def encode(masks: np.ndarray) -> list[dict[str, Any]]:
    """Run lengths of (n, height, width) masks, as results name them."""
    found = run_lengths.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in found]


def scores(
    truth: Annotations,
    results: Sequence[Result],
    kind: Kind,
    *,
    draws: int = DRAWS,
    asked: Sequence[int] = (),
) -> dict[str, tuple[float, float | None]] | None:
    """Metric -> (percent, half of its 95 % interval in points), by COCO's own program.

    Over IoUs of 0.50 to 0.95 unless the name says which; metrics of a range of areas are left out
    where no object is of it. Nothing found gives 0. The errors, of `ap` and `ap50` alone, are of
    other images, not of another training: `draws` draws of as many images with
    replacement. None: a signal came, which is in `asked`.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress
        found = COCOeval(
            _coco(truth, _truths(truth, kind)), _coco(truth, _found(results, kind)), kind
        )
        found.evaluate()
        found.accumulate()
        found.summarize()
        values = {name: float(found.stats[place]) for name, place in METRICS.items()}
        errors = _errors(found, draws, asked)
    if errors is None:
        return None
    return {name: (100 * value, errors.get(name)) for name, value in values.items() if value >= 0}


def _coco(truth: Annotations, entries: list[dict]) -> COCO:
    made = COCO()
    made.dataset = {
        "images": [{"id": p.id, "width": p.width, "height": p.height} for p in truth.pictures],
        "categories": [{"id": n, "name": name} for n, name in truth.categories.items()],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, start=1)],
    }
    made.createIndex()
    return made


def _truths(truth: Annotations, kind: Kind) -> list[dict]:
    entries = []
    for picture in truth.pictures:
        for thing in picture.things:
            entry = {"image_id": picture.id, "category_id": thing.category}
            entry |= {"bbox": list(thing.box), "iscrowd": int(thing.crowd), "area": thing.area}
            if kind == "segm":
                entry["segmentation"] = _encoded(thing, picture)
            if thing.area is None:
                entry["area"] = _area(entry)
            entries.append(entry)
    return entries


def _found(results: Sequence[Result], kind: Kind) -> list[dict]:
    """The area is that of the box or of the mask, as COCO's program has it."""
    left_out = "segmentation" if kind == "bbox" else ""
    kept = [{name: x for name, x in result.items() if name != left_out} for result in results]
    return [{**result, "iscrowd": 0, "area": _area(result)} for result in kept]


def _area(entry: dict) -> float:
    if "segmentation" in entry:
        return float(run_lengths.area(entry["segmentation"]))
    return entry["bbox"][2] * entry["bbox"][3]


def _errors(found: COCOeval, draws: int, asked: Sequence[int]) -> dict[str, float] | None:
    """Half of the 95 % intervals of `ap` and `ap50`, from draws of images; None: a signal came."""
    whole, images = found.evalImgs, len(found.params.imgIds)
    if images < 2:
        return {}
    areas = len(found.params.areaRng)
    kept = np.array(whole, dtype=object).reshape(-1, areas, images)[:, 0]  # of all areas
    found.params.areaRng, found.params.areaRngLbl = found.params.areaRng[:1], ["all"]
    found.params.maxDets = [MOST]
    found._paramsEval = found.params
    rng, drawn = np.random.default_rng(0), []
    for _ in range(draws):
        if asked:
            return None
        found.evalImgs = list(kept[:, rng.integers(images, size=images)].reshape(-1))
        found.accumulate()
        precision = found.eval["precision"][..., 0, 0]  # (IoU, recall, category)
        drawn.append([_mean(precision), _mean(precision[0])])
    return dict(zip(("ap", "ap50"), map(float, 1.96 * 100 * np.std(drawn, axis=0)), strict=True))


def _mean(precision: np.ndarray) -> float:
    """Over categories that occur; -1 stands for the others."""
    there = precision[precision > -1]
    return float(there.mean()) if len(there) else 0.0
