"""ReaL's labels: every class that is right for an image, as people have judged it anew.

Source: Beyer et al., "Are we done with ImageNet?" (arXiv 2006.07159).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poa_ds.evaluate import classes as of_images
from poa_ds.evaluate.accuracies import Accuracy, accuracies
from poa_ds.evaluate.feature_sets import FeatureSet
from poa_ds.evaluate.knn_protocol import Split
from poa_ds.evaluate.measured import Measured
from poa_ds.evaluate.neighbours import Answers
from poa_ds.evaluate.split import without_end
from poa_ds.system import dist
from poa_ds.system.console import say
from poa_ds.system.errors import UserError
from poa_ds.system.json_text import parse
from poa_ds.system.regular import check_regular

NAME = "real"  # of the set, behind the names of metrics
EXPECTED = 50  # percent of the images whose own class is among the listed: 90 of ImageNet's


@dataclass(frozen=True)
class Real:
    """The lists of a file: the n-th is of the n-th image by name, an empty one says nothing."""

    path: Path
    lists: Sequence[Sequence[int]]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "Real":
        """UserError: it is no list of lists of numbers of classes."""
        check_regular(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"--real {path}: {error.strerror}") from error
        try:
            lists = parse(content)
        except ValueError as error:
            raise UserError(f"--real {path} is no JSON: {error}") from error
        if not isinstance(lists, list) or not lists:
            raise UserError(f"--real {path}: not a list with a list of classes for each image")
        for number, classes in enumerate(lists):
            whole = isinstance(classes, list) and all(type(c) is int and c >= 0 for c in classes)
            if not whole:
                raise UserError(
                    f"--real {path}: entry {number} is {str(classes)[:40]}, not a list of numbers "
                    "of classes from 0 on"
                )
        return cls(path, lists, hashlib.sha256(content).hexdigest())

    def check(self, images: int, place: str) -> None:
        """UserError: there is not a list for each of the images of `place`."""
        if images != len(self.lists):
            raise UserError(
                f"--real {self.path} has {len(self.lists):,} lists, {place} {images:,} images: "
                "there must be one for each"
            )

    def right(self, keys: Sequence[str], numbers: Tensor, classes: int, place: str) -> Tensor:
        """(n, classes) booleans: which answers are right for each image of the place.

        keys: of all its images, in their order. numbers: of each of its classes, which the lists
        name, among those that are answered, others than 0 to classes - 1 for none. UserError: names
        or classes do not go with the lists.
        """
        self.check(len(keys), place)
        names = [without_end(key) for key in keys]
        if len(set(names)) < len(names):
            raise UserError(
                f"--real {self.path}: {place} has images of one name, and lists are in the order "
                "of names"
            )
        most = max((c for listed in self.lists for c in listed), default=-1)
        if most >= len(numbers):
            raise UserError(
                f"--real {self.path} names class {most}, {place} has {len(numbers)} classes "
                "from 0 on"
            )
        found = torch.zeros(len(keys), classes, dtype=torch.bool)
        by_name = sorted(range(len(names)), key=names.__getitem__)
        for row, listed in zip(by_name, self.lists, strict=True):
            own = numbers[listed]
            found[row, own[(own >= 0) & (own < classes)]] = True
        return found

    def record(self) -> dict[str, Any]:
        """For a protocol: which lists."""
        empty = sum(not listed for listed in self.lists)
        return {"file": self.path.name, "sha256": self.sha256, "empty": empty}

    def of_rows(self, right: Tensor, labels: Tensor) -> Tensor:
        """The numbers of the rows of `right` that have a list; labels: their own class.

        UserError: none has. A warning where the lists seem to be of other images.
        """
        rows = right.any(1).nonzero()[:, 0]
        if not len(rows):
            raise UserError(f"--real {self.path} has no class for any of the images")
        agree = 100 * float(right[rows, labels[rows]].double().mean())
        if agree < EXPECTED and dist.is_main():
            say(
                f"warning: only {agree:.0f}% of the images have their own class in {self.path}: "
                "its lists must be in the order of the images' names, and name classes by their "
                "numbers among those of the images"
            )
        return rows


def of_features(
    lists: Real, found: FeatureSet, numbers: Tensor, classes: int, sizes: Sequence[str]
) -> Measured:
    """The validation images that have a list, by what was learnt, as `measured.of_features`."""
    right = lists.right(found.keys(), numbers, classes, found.place)
    right = right[found.numbers(sizes[0])]  # an image is damaged whatever the size
    labels = found.rows(sizes[0])[1]
    right[~of_images.known(labels, numbers, found.place)] = False
    listed = lists.of_rows(right, numbers[labels])

    def rows(size: str) -> tuple[Tensor, Tensor]:
        return found.rows(size)[0][listed], right[listed]

    about = found.record(len(listed)) | of_images.record(labels, numbers)
    return Measured(NAME, rows, about | {"real": lists.record()})


def of_answers(
    lists: Real, split: Split, answered: Sequence[Answers], k: int
) -> tuple[list[Mapping[str, Accuracy]], dict[str, Any]]:
    """(metric -> accuracy of each size's answers to queries that have a list, for the protocol)."""
    folder, classes = split.folder, len(split.numbers)
    names = [folder.name(row) for row in range(len(folder))]
    right = lists.right(names, split.numbers[:-1], int(split.numbers[-1]), str(folder.path))
    asked = [names[row] for row in split.rows]
    right = right[torch.from_numpy(split.rows)]
    right[[name in answered[0].damaged for name in asked]] = False
    rows = lists.of_rows(right, split.labels)
    found = [accuracies(of.first[k][rows], right[rows], classes) for of in answered]
    return found, split.record() | {"images": len(rows), "real": lists.record()}
