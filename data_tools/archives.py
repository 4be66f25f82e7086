"""The official archives of ImageNet, read in place: only their headers are walked through.

ILSVRC2012_img_train.tar holds one tar per synset, ILSVRC2012_img_val.tar the images side by side.
"""

import re
from pathlib import Path, PurePosixPath

from data_tools.sources import Rejected, Sample, TarSlice
from poa_ds.data.store.leftovers import leftover
from poa_ds.data.store.tarwalk import tar_entries
from poa_ds.system.progress import progress

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def synsets(archive: Path, pattern: re.Pattern[str]) -> list[str]:
    """The sorted synsets of the training archive."""
    names = {PurePosixPath(name).stem for name, _, _ in _outer(archive) if not leftover(name)}
    return sorted(name for name in names if pattern.fullmatch(name))


def train(archive: Path, classes: list[str]) -> tuple[list[Sample], list[Rejected]]:
    """The images of the inner tars; (samples, what is rejected at once)."""
    ranks = {name: rank for rank, name in enumerate(classes)}
    samples: list[Sample] = []
    rejected: list[Rejected] = []
    outer = _outer(archive)
    with open(archive, "rb") as file:
        for name, begin, length in progress(outer, total=len(outer), label=TRAIN, unit="tars"):
            inner = PurePosixPath(name)
            if leftover(name):
                rejected.append(Rejected(f"{TRAIN}/{name}", "left by a file manager"))
                continue
            if inner.suffix != ".tar" or inner.stem not in ranks:
                rejected.append(Rejected(f"{TRAIN}/{name}", "not the tar of a synset"))
                continue
            before = len(samples)
            for member, offset, size in tar_entries(file, f"{archive}, {name}", begin, length):
                origin, path = f"{TRAIN}/{name}/{member}", PurePosixPath(member)
                if leftover(member):
                    rejected.append(Rejected(origin, "left by a file manager"))
                    continue
                content = TarSlice(str(archive), offset, size)
                samples.append(Sample(path.stem, origin, content, ranks[inner.stem]))
            if len(samples) == before:
                rejected.append(Rejected(f"{TRAIN}/{name}", "tar without images"))
    return samples, rejected


def val(archive: Path) -> list[Sample]:
    """The validation images, without labels."""
    return [
        Sample(PurePosixPath(name).stem, f"{VAL}/{name}", TarSlice(str(archive), offset, size))
        for name, offset, size in _outer(archive)
        if not leftover(name)
    ]


def _outer(archive: Path) -> list[tuple[str, int, int]]:
    with open(archive, "rb") as file:
        return list(tar_entries(file, str(archive)))
