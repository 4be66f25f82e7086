"""An ImageNet tree -> shards: train/ with one folder per synset, val/ with folders or flat.

The class of a synset is its rank among the sorted names of train/, never the number that the
development kit gives it.
"""

import argparse
import re
from pathlib import Path

from data_tools.folder import check_root, files, folders, hidden
from data_tools.imagenet_labels import NAMES, find_labels
from data_tools.shard import Rejected, Sample, add_options, prepare, write
from poa_ds.errors import UserError

SYNSET = re.compile(r"n\d{8}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds shard imagenet`."""
    parser.add_argument("--root", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--val-labels", type=Path, help="labels of a flat val/ (else looked for)")
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Writes OUT/train and, where val/ exists, OUT/val."""
    check_root(args.root, args.out)
    classes = [path.name for path in _synsets(args.root / "train")]
    if not classes:
        raise UserError(f"{args.root / 'train'} has no folders named like n01440764")
    splits = {"train": _by_folder(args.root, "train", classes)}
    if (args.root / "val").is_dir():
        flat = not _synsets(args.root / "val")
        splits["val"] = (
            _flat(args.root, classes, args.val_labels)
            if flat
            else _by_folder(args.root, "val", classes)
        )
    else:
        print(f"{args.root} has no val/: only train is written")
    for split in splits:
        prepare(args.out / split)
    for split, (samples, rejected) in splits.items():
        summary = write(
            args.out / split,
            samples,
            classes=classes,
            rejected=rejected,
            tool="imagenet",
            args=args,
            source=str(args.root / split),
        )
        print(summary)
    return 0


def _synsets(folder: Path) -> list[Path]:
    found = folders(folder) if folder.is_dir() else []
    return [path for path in found if SYNSET.fullmatch(path.name)]


def _by_folder(root: Path, split: str, classes: list[str]) -> tuple[list[Sample], list[Rejected]]:
    """Samples labelled by the folder below the split that they lie in."""
    ranks = {name: rank for rank, name in enumerate(classes)}
    samples, rejected = [], []
    for path in files(root / split):
        origin, parts = str(path.relative_to(root)), path.relative_to(root / split).parts
        if hidden(Path(*parts)):
            rejected.append(Rejected(origin, "hidden file"))
        elif len(parts) < 2 or not SYNSET.fullmatch(parts[0]):
            rejected.append(Rejected(origin, "not in a synset folder"))
        elif parts[0] not in ranks:
            rejected.append(Rejected(origin, f"synset without a folder in train: {parts[0]}"))
        else:
            samples.append(Sample(path.stem, origin, path, ranks[parts[0]]))
    filled = {sample.label for sample in samples}
    rejected += [
        Rejected(f"{split}/{name}/", "class folder without images")
        for name, rank in ranks.items()
        if rank not in filled
    ]
    return samples, rejected


def _flat(
    root: Path, classes: list[str], given: Path | None
) -> tuple[list[Sample], list[Rejected]]:
    """Samples of a flat val/, labelled by a file."""
    paths, rejected = [], []
    for path in files(root / "val"):
        inside = path.relative_to(root / "val")
        if hidden(inside):
            rejected.append(Rejected(f"val/{inside}", "hidden file"))
        elif path.name not in NAMES and path != given:
            paths.append(path)
    names = [path.name for path in paths]
    labels = find_labels(root, given, names, classes)
    samples = []
    for path in paths:
        origin, label = str(path.relative_to(root)), labels.classes.get(path.stem)
        if label is None:
            rejected.append(Rejected(origin, f"no label: not named in {labels.path.name}"))
        else:
            samples.append(Sample(path.stem, origin, path, label))
    stems = {path.stem for path in paths}
    rejected += [
        Rejected(f"val/{stem}", f"no such file: named in {labels.path.name}")
        for stem in labels.classes
        if stem not in stems
    ]
    return samples, rejected
