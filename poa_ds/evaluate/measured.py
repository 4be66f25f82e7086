"""What a classifier is measured on: the validation images, and any other sets besides."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poa_ds.evaluate import accuracies, classes, corruptions
from poa_ds.evaluate.accuracies import Accuracy
from poa_ds.evaluate.feature_sets import FeatureSet
from poa_ds.evaluate.score_rows import CORRUPTED, ScoreRow
from poa_ds.system import paths
from poa_ds.system.errors import UsageError

Rows = Callable[[str], tuple[Tensor, Tensor]]  # size -> (features (n, D), labels (n,))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets besides the validation images, and other labels of these."""
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        type=named_place,
        metavar="NAME=PLACE",
        help="labelled images that are measured too, by what was learnt and chosen; repeatable",
    )
    parser.add_argument(
        "--only-classes",
        action="store_true",
        help="answers on a --test set are among its own classes, where it has fewer",
    )
    parser.add_argument(
        "--real",
        type=paths.path,
        metavar="FILE",
        help="JSON with a list of right classes for each image measured on, in the order of "
        "names: any of them counts (ReaL's real.json)",
    )
    corruptions.add_arguments(parser)


def named_place(text: str) -> tuple[str, str]:
    """(NAME, PLACE) of NAME=PLACE; the name becomes a part of the names of metrics."""
    name, _, place = text.partition("=")
    if not re.fullmatch(r"[A-Za-z]\w*", name) or name == "val" or not place:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=PLACE, NAME of letters, digits and _, and another than val"
        )
    return name, paths.place(place)


def tests(args: argparse.Namespace) -> dict[str, str]:
    """Name -> place of each --test and of --corruptions.

    UsageError: two have one name, or there is none to restrict.
    """
    names = [name for name, _ in args.test]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--test {twice[0]}= is given twice: another name for one of them")
    if args.real and "real" in names:
        raise UsageError("--test real= has the name that --real gives: another one")
    if CORRUPTED in names:
        raise UsageError(f"--test {CORRUPTED}= has the name that --corruptions gives: another one")
    if args.only_classes and not names:
        raise UsageError("--only-classes says how --test NAME=PLACE is answered: give one")
    return dict(args.test) | corruptions.places(args)


def answers(numbers: Tensor, count: int, args: argparse.Namespace) -> Tensor | None:
    """(count,) booleans, what may be answered on a --test set with these classes; None: all.

    numbers: of its classes, others than 0 to count - 1 where none is learnt.
    """
    found = torch.zeros(count, dtype=torch.bool)
    found[numbers[(numbers >= 0) & (numbers < count)]] = True
    return found if args.only_classes and not found.all() else None


def answers_record(among: Tensor | None) -> dict[str, int]:
    """For a protocol: among how many classes was answered, if not all."""
    return {} if among is None else {"answers": int(among.sum())}


@dataclass(frozen=True)
class Measured:
    """One set. rows: labels in the numbers of what was learnt from; (n, K) booleans where several
    classes are right. record: for the protocol, how many of which images. among: (K,) booleans,
    the classes that may be answered; None: all.
    """

    name: str
    rows: Rows
    record: Mapping[str, Any]
    among: Tensor | None = None

    def accuracies(self, size: str, first: Tensor, classes: int) -> Mapping[str, Accuracy]:
        """Metric -> accuracy of a size's `best_first`, of a classifier of so many classes."""
        answers = classes if self.among is None else int(self.among.sum())
        return accuracies.accuracies(first.cpu(), self.rows(size)[1].cpu(), answers)

    def score_rows(
        self, kind: str, found: Mapping[str, Accuracy], protocol: Mapping[str, Any], **about: Any
    ) -> list[ScoreRow]:
        """A row for each metric; about: the same for all, as `score_rows_of` takes it."""
        own = dict(protocol) if self.name == "val" else protocol | {"val": self.record}
        return score_rows_of(kind, self.name, found, own, **about)


def score_rows_of(
    kind: str,
    name: str,
    found: Mapping[str, Accuracy],
    protocol: Mapping[str, Any],
    *,
    amount: str = "",
    **about: Any,
) -> list[ScoreRow]:
    """A row for each metric of a set. amount: of labels, behind its name."""
    return [
        ScoreRow(
            kind=kind,
            metric=f"{metric}{amount}",
            value=accuracy.percent,
            error=accuracy.error,
            set=name,
            protocol=protocol,
            torch=torch.__version__,
            **about,
        )
        for metric, accuracy in found.items()
    ]


def of_features(
    name: str,
    found: FeatureSet,
    numbers: Tensor,
    sizes: Sequence[str],
    among: Tensor | None = None,
) -> Measured:
    """numbers: of each of the set's classes among those learnt from; images of UNKNOWN are left
    out. sizes: those measured.
    """

    def rows(size: str) -> tuple[Tensor, Tensor]:
        x, labels = found.rows(size)
        kept = classes.known(labels, numbers, found.place)
        return x[kept], numbers[labels[kept]]

    about = found.record(0)
    if sizes:
        labels = found.rows(sizes[0])[1]
        images = int(classes.known(labels, numbers, found.place).sum())
        about = found.record(images) | classes.record(labels, numbers)
    return Measured(name, rows, about | answers_record(among), among)
