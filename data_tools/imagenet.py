"""ImageNet -> shards: train/ with one folder per synset and val/ with folders or flat, or the
official archives ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which stay packed.

The class of a synset is its rank among the sorted names of train/, never the number that the
development kit gives it.
"""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from data_tools import archives
from data_tools.archives import TRAIN, VAL
from data_tools.folder import check_root, without_images
from data_tools.imagenet_labels import NAMES, find_labels
from data_tools.packing import add_recode
from data_tools.shard import Split, add_options, write_splits
from data_tools.sources import Rejected, Sample
from poa_ds.data.store.tree import files, folders, passed_over
from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UserError

SYNSET = re.compile(r"n\d{8}")
Found = tuple[list[Sample], list[Rejected]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds shard imagenet`."""
    parser.add_argument(
        "--root",
        type=paths.path,
        required=True,
        help=f"has train/ and val/, or {TRAIN} and {VAL}",
    )
    parser.add_argument(
        "--val-labels", type=paths.path, help="labels of a flat val/ (else looked for)"
    )
    add_options(parser, within=" (OUT/train and OUT/val)")
    add_recode(parser)


def run(args: argparse.Namespace) -> int:
    """Writes OUT/train and, where the root has one, OUT/val."""
    check_root(args.root, args.out)
    root, splits = args.root, {}
    if (root / "train").is_dir():
        classes = [path.name for path in _synsets(root / "train")]
        found, source = _by_folder(root, "train", classes), root / "train"
    elif (root / TRAIN).is_file():
        classes = archives.synsets(root / TRAIN, SYNSET)
        found, source = archives.train(root / TRAIN, classes), root / TRAIN
    else:
        classes = []
    if not classes:
        raise UserError(f"{root / 'train'} has no folders named like n01440764, and no {TRAIN}")
    splits[args.out / "train"] = Split(found[0], classes, found[1], str(source))
    if (root / "val").is_dir() and _synsets(root / "val"):
        found, source = _by_folder(root, "val", classes), root / "val"
    elif (root / "val").is_dir():
        found, source = _flat(root, classes, args.val_labels), root / "val"
    elif (root / VAL).is_file():
        samples = archives.val(root / VAL)
        found, source = _labelled(root, samples, classes, args.val_labels), root / VAL
    else:
        tell(f"{root} has no val/ and no {VAL}: only train is written")
        return write_splits(splits, tool="imagenet", args=args)
    splits[args.out / "val"] = Split(found[0], classes, found[1], str(source))
    return write_splits(splits, tool="imagenet", args=args)


def _synsets(folder: Path) -> list[Path]:
    found = folders(folder) if folder.is_dir() else []
    return [path for path in found if SYNSET.fullmatch(path.name)]


def _by_folder(root: Path, split: str, classes: list[str]) -> Found:
    """Samples labelled by the folder below the split that they lie in."""
    ranks = {name: rank for rank, name in enumerate(classes)}
    samples: list[Sample] = []
    found, passed = files(root / split, named_from=root)
    rejected = [Rejected(*item) for item in passed]
    for path in found:
        origin, parts = str(path.relative_to(root)), path.relative_to(root / split).parts
        reason = passed_over(Path(*parts))
        if reason:
            rejected.append(Rejected(origin, reason))
        elif len(parts) < 2 or not SYNSET.fullmatch(parts[0]):
            rejected.append(Rejected(origin, "not in a synset folder"))
        elif parts[0] not in ranks:
            rejected.append(Rejected(origin, f"synset without a folder in train: {parts[0]}"))
        else:
            samples.append(Sample(path.stem, origin, path, ranks[parts[0]]))
    empty = without_images(ranks, samples, rejected, place=f"{split}/")
    return samples, rejected + empty


def _flat(root: Path, classes: list[str], given: Path | None) -> Found:
    """Samples of a flat val/, labelled by a file."""
    samples: list[Sample] = []
    found, passed = files(root / "val", named_from=root)
    rejected = [Rejected(*item) for item in passed]
    for path in found:
        origin, inside = str(path.relative_to(root)), path.relative_to(root / "val")
        reason = passed_over(inside)
        if reason:
            rejected.append(Rejected(origin, reason))
        elif path.name not in NAMES and path != given:
            samples.append(Sample(path.stem, origin, path))
    labelled, unlabelled = _labelled(root, samples, classes, given)
    return labelled, rejected + unlabelled


def _labelled(
    root: Path, samples: Sequence[Sample], classes: list[str], given: Path | None
) -> Found:
    """The samples with the labels of a file; what only one side names is rejected."""
    names = [Path(sample.origin).name for sample in samples]
    labels = find_labels(root, given, names, classes)
    labelled, rejected = [], []
    for sample in samples:
        label = labels.classes.get(sample.name)
        if label is None:
            reason = f"no label: not named in {labels.path.name}"
            rejected.append(Rejected(sample.origin, reason))
        else:
            labelled.append(dataclasses.replace(sample, label=label))
    stems = {sample.name for sample in samples}
    rejected += [
        Rejected(f"val/{stem}", f"no such file: named in {labels.path.name}")
        for stem in labels.classes
        if stem not in stems
    ]
    return labelled, rejected
