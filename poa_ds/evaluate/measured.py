"""What a classifier is measured on: the validation images, and any other sets besides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poa_ds.evaluate import accuracies
from poa_ds.evaluate.accuracies import Accuracy
from poa_ds.evaluate.feature_sets import FeatureSet
from poa_ds.evaluate.score_rows import ScoreRow

Rows = Callable[[str], tuple[Tensor, Tensor]]  # size -> (features (n, D), labels (n,))


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


def of_features(name: str, found: FeatureSet, numbers: Tensor, sizes: Sequence[str]) -> Measured:
    """numbers: of each of the set's classes among those learnt from. sizes: those measured."""

    def rows(size: str) -> tuple[Tensor, Tensor]:
        x, labels = found.rows(size)
        return x, numbers[labels]

    images = len(found.numbers(sizes[0])) if sizes else 0
    return Measured(name, rows, found.record(images))
