"""COCO's annotation files: objects of images with a box and a mask each, checked as they are read.

    ROOT/annotations/instances_train2017.json   and instances_val2017.json: any suffix, one of each
    ROOT/train2017/, or ROOT/images/train2017/  the images

Categories keep the numbers of the file in results; networks count them from 1.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from poa_ds.system.errors import UserError
from poa_ds.system.json_text import is_of, parse

SECTIONS = ("images", "annotations", "categories")
LISTED = 3  # examples in a message


@dataclass(frozen=True)
class Thing:
    """One object. box: left, top, width, height in pixels. segmentation: as the file has it.

    area: of the file; None where it has none. crowd: many of a category, as one.
    """

    category: int
    box: tuple[float, float, float, float]
    segmentation: Any
    area: float | None
    crowd: bool


@dataclass(frozen=True)
class Picture:
    id: int
    name: str
    width: int
    height: int
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Annotations:
    """What one file says. categories: number -> name. dropped: things of an empty box.

    hash: of the file, not of the images.
    """

    path: Path
    folder: Path
    pictures: tuple[Picture, ...]
    categories: Mapping[int, str]
    dropped: int
    hash: str = ""

    @cached_property
    def labels(self) -> dict[int, int]:
        """Number of a category in the file -> 1, 2, ..., as networks count them."""
        return {number: i for i, number in enumerate(sorted(self.categories), start=1)}

    def to_learn_from(self) -> list[Picture]:
        """The pictures that have anything but crowds."""
        return [p for p in self.pictures if any(not thing.crowd for thing in p.things)]


def find(root: Path, split: str) -> tuple[Path, Path]:
    """(annotation file, folder of images) of "train" or "val" below a data set's folder."""
    if not root.is_dir():
        raise UserError(f"--coco {root}: there is no such folder")
    files = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise UserError(
            f"--coco {root}: one file annotations/instances_{split}*.json is needed; there: {found}"
        )
    name = files[0].stem.removeprefix("instances_")
    places = [root / name, root / "images" / name]
    for place in places:
        if place.is_dir():
            return files[0], place
    raise UserError(f"--coco {root}: the images of {files[0].name} are in none of {places}")


def read(path: Path, folder: Path, *, masks: bool) -> Annotations:
    """The checked content of a file whose images lie in `folder`. masks: each thing must have one.

    UserError: what is wrong with the file, or which images are missing.
    """
    content, hashed = _content(path)
    categories = {
        entry["id"]: str(entry["name"]) for entry in _entries(path, content["categories"])
    }
    images = {entry["id"]: entry for entry in _entries(path, content["images"])}
    _once(path, "image", (entry["id"] for entry in content["images"]))
    _once(path, "category", (entry["id"] for entry in content["categories"]))
    things: dict[int, list[Thing]] = {number: [] for number in images}
    dropped = 0
    _known(path, content["annotations"], "image_id", images)
    _known(path, content["annotations"], "category_id", categories)
    for entry in content["annotations"]:
        thing = _thing(path, entry, masks)
        if min(thing.box[2:]) <= 0:
            dropped += 1
        else:
            things[entry["image_id"]].append(thing)
    pictures = tuple(_picture(path, images[n], things[n]) for n in sorted(images))
    missing = [p.name for p in pictures if not (folder / p.name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing):,} images of {path}: {_some(missing)}")
    return Annotations(path, folder, pictures, categories, dropped, hashed)


def _content(path: Path) -> tuple[dict[str, list], str]:
    """(the lists of the file, its hash)."""
    try:
        text = path.read_bytes()
        content = parse(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with {', '.join(SECTIONS)}")
    missing = [name for name in SECTIONS if not isinstance(content.get(name), list)]
    if missing:
        raise UserError(f"{path} has no list {', '.join(missing)}: it is no file of instances")
    for name in SECTIONS[::2]:
        if not content[name]:
            raise UserError(f"{path}: the list {name} is empty")
    return content, hashlib.sha256(text).hexdigest()


def _entries(path: Path, entries: Sequence[Any]) -> Iterable[dict]:
    """The images or categories, each with a number and a name."""
    for entry in entries:
        named = isinstance(entry, dict) and (entry.get("name") or entry.get("file_name"))
        if not named or not is_of(entry.get("id"), int):
            raise UserError(f"{path}: {_short(entry)} needs an id and a name")
        yield entry


def _once(path: Path, what: str, numbers: Iterable[int]) -> None:
    twice = [str(number) for number, count in Counter(numbers).items() if count > 1]
    if twice:
        raise UserError(f"{path}: {len(twice)} numbers of an {what} stand twice: {_some(twice)}")


def _known(path: Path, entries: Sequence[Any], key: str, numbers: Mapping[int, Any]) -> None:
    """UserError: annotations of images or categories that the file does not list."""
    wrong = []
    for entry in entries:
        if not isinstance(entry, dict) or not is_of(entry.get(key), int):
            raise UserError(f"{path}: the annotation {_short(entry)} has no {key}")
        if entry[key] not in numbers:
            wrong.append(f"annotation {entry.get('id')} of {key} {entry[key]}")
    if wrong:
        raise UserError(f"{path}: {len(wrong):,} annotations of an unknown {key}: {_some(wrong)}")


def _thing(path: Path, entry: dict, masks: bool) -> Thing:
    box, segmentation = entry.get("bbox"), entry.get("segmentation")
    what = f"{path}: annotation {entry.get('id')}"
    if not isinstance(box, list) or len(box) != 4 or not all(is_of(x, float) for x in box):
        raise UserError(f"{what}: bbox is {_short(box)}: expected [left, top, width, height]")
    if masks and not _is_segmentation(segmentation):
        has = "no" if not segmentation else "an unknown kind of"
        raise UserError(f"{what} has {has} segmentation: --boxes does without masks")
    area = entry.get("area")
    if area is not None and not is_of(area, float):
        raise UserError(f"{what}: area is {_short(area)}")
    return Thing(
        entry["category_id"], tuple(box), segmentation, area, bool(entry.get("iscrowd", 0))
    )


def _is_segmentation(value: Any) -> bool:
    """Whether it is polygons of three points or more, or run lengths with a size."""
    if isinstance(value, dict):
        return isinstance(value.get("counts"), list | str) and "size" in value
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(p, list)
            and len(p) >= 6
            and len(p) % 2 == 0
            and all(is_of(x, float) for x in p)
            for p in value
        )
    )


def _picture(path: Path, entry: dict, things: Sequence[Thing]) -> Picture:
    name, sides = entry.get("file_name"), [entry.get("width"), entry.get("height")]
    if not isinstance(name, str) or not all(is_of(side, int) and side for side in sides):
        raise UserError(f"{path}: image {entry['id']} needs file_name, width and height")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{path}: image {entry['id']}: {name} leads out of the folder")
    return Picture(entry["id"], name, *sides, tuple(things))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _short(value: Any) -> str:
    return str(value)[:60]
