"""Made pictures of rectangles and discs on noise, as a data set in COCO's form."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NUMBERS = {"rectangle": 3, "disc": 7}  # of the categories: not contiguous, as COCO's


def make_coco(
    root: Path, *, train: int, val: int, side: int = 64, seed: int = 0, most: int = 3
) -> Path:
    """ROOT with instances_train2017.json, instances_val2017.json and their images; ROOT itself.

    Images are side x side or a quarter wider, with one to `most` things of side / 4 to side / 2;
    which lie on top is what their masks say.
    """
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count in (("train2017", train), ("val2017", val)):
        rng = np.random.default_rng([seed, len(split)])
        (root / split).mkdir(exist_ok=True)
        content = {"images": [], "annotations": [], "categories": categories()}
        for number in range(1, count + 1):
            wide = side + side // 4 * int(rng.integers(2))
            picture, masks = _picture(rng, side, wide, most)
            name = f"{number:06d}.png"
            Image.fromarray(picture).save(root / split / name)
            about = {"id": number, "file_name": name, "width": wide, "height": side}
            content["images"].append(about)
            for category, mask in masks:
                thing = {"id": len(content["annotations"]) + 1, "image_id": number}
                content["annotations"].append(thing | _described(category, mask))
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))
    return root


def categories() -> list[dict]:
    return [{"id": number, "name": name} for name, number in NUMBERS.items()]


def _picture(
    rng: np.random.Generator, side: int, wide: int, most: int
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    picture = rng.integers(0, 90, (side, wide, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:side, :wide]
    masks: list[tuple[int, np.ndarray]] = []
    for _ in range(int(rng.integers(1, most + 1))):
        high, broad = rng.integers(side // 4, side // 2 + 1, 2)
        is_disc = bool(rng.integers(2))
        broad = high if is_disc else broad
        top, left = rng.integers(0, side - high + 1), rng.integers(0, wide - broad + 1)
        if is_disc:
            middle = (top + (high - 1) / 2, left + (high - 1) / 2)
            mask = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= (high / 2) ** 2
        else:
            mask = (
                (top <= rows) & (rows < top + high) & (left <= columns) & (columns < left + broad)
            )
        picture[mask] = rng.integers(120, 256, 3)
        masks = [(category, other & ~mask) for category, other in masks]
        masks.append((NUMBERS["disc" if is_disc else "rectangle"], mask))
    return picture, [(category, mask) for category, mask in masks if mask.sum() >= 16]


def _described(category: int, mask: np.ndarray) -> dict:
    """With run lengths that are not compressed: columns one after the other, zeros first."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, len(flat)]).tolist()
    counts = [0, *counts] if flat[0] else counts
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {
        "category_id": category,
        "bbox": [float(x) for x in box],
        "area": float(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": counts},
    }
