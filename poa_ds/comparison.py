"""From two shard folders to k-NN accuracies of any features: bank and queries of one evaluation.

Each rank reads, encodes and keeps its share of both; knn.py does the rest.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.data.index import ShardFolder
from poa_ds.data.loader import eval_batches
from poa_ds.errors import UsageError, UserError
from poa_ds.knn import Bank, Deal, accuracies, spread
from poa_ds.recipe import Evaluation

Encoder = Callable[[Tensor], list[Tensor]]  # uint8 images (b, 3, S, S) -> one (b, C_i) per kind
Progress = Callable[..., Iterable[Any]]  # progress(items, total=, label=, unit=) -> the items


@dataclass(frozen=True)
class Split:
    """The images of a shard folder that take part, with their labels in the bank's numbers."""

    folder: ShardFolder
    rows: np.ndarray
    labels: Tensor


@dataclass(frozen=True)
class Comparison:
    """Labelled queries against a labelled bank. `options` is the recipe's section `evaluation`."""

    bank: Split
    queries: Split
    options: Evaluation

    @classmethod
    def of(cls, bank: ShardFolder, queries: ShardFolder, options: Evaluation) -> "Comparison":
        """Evenly spread subsets where the recipe asks for them; classes are matched by name.

        UserError: the same images twice, no labels, classes that the bank lacks.
        """
        if bank.hash == queries.hash:
            raise UsageError(
                f"evaluation.queries {queries.path} and the bank {bank.path} are the same images: "
                "each would find itself; name another split"
            )
        lacking = sorted(set(queries.classes) - set(bank.classes))
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise UserError(
                f"{queries.path} has classes that the bank {bank.path} lacks: "
                f"{', '.join(lacking[:3])}{more}"
            )
        number = {name: i for i, name in enumerate(bank.classes)}
        renumber = np.array([number[name] for name in queries.classes], dtype=np.int64)
        bank_rows, query_rows = (
            _labelled(bank, options.bank_images),
            _labelled(queries, options.query_images),
        )
        return cls(
            Split(bank, bank_rows, torch.from_numpy(bank.labels[bank_rows])),
            Split(queries, query_rows, torch.from_numpy(renumber[queries.labels[query_rows]])),
            options,
        )

    def rows_per_rank(self) -> int:
        """Images that a rank keeps features of, at most."""
        deals = (self._deal(split) for split in (self.bank, self.queries))
        return sum(deal.rounds * deal.block for deal in deals)

    @torch.inference_mode()
    def measure(
        self,
        encode: Encoder,
        kinds: int,
        *,
        device: torch.device,
        workers: int = 0,
        progress: Progress | None = None,
    ) -> list[dict[int, float]]:
        """Percent top-1 for each k, for each of the `kinds` features of `encode`. A collective."""

        def blocks(split: Split, label: str) -> list[list[Tensor]]:
            """Unit feature rows [kind][block] of this rank's share, on the CPU."""
            batches = self._batches(split, workers)
            if progress is not None:
                total = len(self._deal(split).own())
                batches = progress(batches, total=total, label=label, unit="batches")
            found: list[list[Tensor]] = [[] for _ in range(kinds)]
            for images, _ in batches:
                for kind, x in enumerate(encode(images.to(device))):
                    found[kind].append(F.normalize(x.float(), dim=1).cpu())
            return found

        known, asked = blocks(self.bank, "k-NN bank"), blocks(self.queries, "k-NN queries")
        numbers = self._deal(self.bank).own()
        return [
            accuracies(
                Bank(known[kind], numbers),
                asked[kind],
                self._deal(self.queries),
                bank_labels=self.bank.labels,
                query_labels=self.queries.labels,
                classes=len(self.bank.folder.classes),
                temperature=self.options.temperature,
                k=self.options.k,
                device=device,
            )
            for kind in range(kinds)
        ]

    def _deal(self, split: Split) -> Deal:
        return Deal(len(split.rows), self.options.batch_size)

    def _batches(self, split: Split, workers: int) -> Iterable[tuple[Tensor, Tensor]]:
        """This rank's blocks, one batch each (only the set's last block is short)."""
        places = [i for span in self._deal(split).own() for i in span]
        return eval_batches(
            split.folder,
            split.rows[places],
            resize=self.options.resize,
            crop=self.options.crop,
            batch_size=self.options.batch_size,
            workers=workers,
        )


def _labelled(folder: ShardFolder, wanted: int) -> np.ndarray:
    rows = np.flatnonzero(folder.labels >= 0)
    if not len(rows):
        raise UserError(f"{folder.path} has no labels: k-NN needs them in bank and queries")
    return rows[spread(len(rows), wanted)]
