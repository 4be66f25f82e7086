"""Labels of ImageNet's flat validation folder, in the dialects in which they are passed around.

LOC_val_solution.csv     Kaggle: ILSVRC2012_val_00000001,n01751748 111 108 265 331 ...
val_synset_labels.txt    one synset per line, in the order of the file names
val_labels.txt           ILSVRC2012_val_00000001.JPEG 65 (rank of the synset)
val_origin.tsv           ILSVRC2012_val_00000001.JPEG <tab> n01751748 [<tab> ...]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from poa_ds.system.errors import UsageError, UserError

NAMES = ("LOC_val_solution.csv", "val_synset_labels.txt", "val_labels.txt", "val_origin.tsv")
HEADER = "ImageId,PredictionString"


@dataclass(frozen=True)
class LabelFile:
    """Class by the stem of an image's name."""

    path: Path
    classes: dict[str, int]


def find_labels(
    root: Path, given: Path | None, names: Sequence[str], classes: Sequence[str]
) -> LabelFile:
    """The labels of the images `names`: from `given`, or from every known file in root or val/.

    Several files must agree.
    """
    if given is not None:
        if not given.is_file():
            raise UsageError(f"--val-labels {given}: no such file")
        return read_labels(given, names, classes)
    folders = (root, root / "val")
    paths = [folder / name for name in NAMES for folder in folders if (folder / name).is_file()]
    if not paths:
        raise UserError(
            f"{root / 'val'} has no folder per synset and there is no file with its labels: "
            f"name one with --val-labels or put one of {', '.join(NAMES)} into {root}"
        )
    first, *others = [read_labels(path, names, classes) for path in paths]
    for other in others:
        for stem in first.classes.keys() & other.classes.keys():
            if first.classes[stem] != other.classes[stem]:
                raise UserError(
                    f"{first.path} and {other.path} disagree about {stem}: class "
                    f"{first.classes[stem]} and {other.classes[stem]}; name one with --val-labels"
                )
    return first


def read_labels(path: Path, names: Sequence[str], classes: Sequence[str]) -> LabelFile:
    """The content of one label file, whichever dialect it is written in."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    rows = [re.split(r"[,\s]+", line) for line in lines if line and line != HEADER]
    if not rows:
        raise UserError(f"{path} is empty")
    ranks = {name: rank for rank, name in enumerate(classes)}
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(names):
            raise UserError(f"{path} has {len(rows)} lines for {len(names)} images")
        rows = [[name, row[0]] for name, row in zip(sorted(names), rows, strict=True)]
        if rows[0][1].isdigit():
            raise UserError(
                f"{path} holds bare numbers, which may be those of the development kit: "
                f"a file with synsets (n01440764) or with 'name rank' is needed"
            )
    found: dict[str, int] = {}
    for row in rows:
        if len(row) < 2:
            raise UserError(f"{path}: cannot read the line {row[0]!r}")
        label = int(row[1]) if row[1].isdigit() else ranks.get(row[1], -1)
        if not 0 <= label < len(classes):
            raise UserError(f"{path}: {row[0]} is of class {row[1]}, which train/ does not have")
        stem = Path(row[0]).stem
        if found.setdefault(stem, label) != label:
            raise UserError(f"{path} names {stem} twice: of class {found[stem]} and {label}")
    return LabelFile(path, found)
