"""From two shard folders to k-NN accuracies of any features: bank and queries of one evaluation.

Each rank reads, encodes and keeps its share of both; neighbours.py does the rest.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.data.batch import Bad
from poa_ds.data.loader import eval_batches
from poa_ds.data.store.index import SampleError, ShardFolder
from poa_ds.evaluate import classes
from poa_ds.evaluate.neighbours import Answers, Bank, Deal, answers, subset
from poa_ds.recipe.tree import Evaluation
from poa_ds.system import dist
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError, UserError

Encoder = Callable[[Tensor], list[Tensor]]  # uint8 images (b, 3, S, S) -> one (b, C_i) per kind
Progress = Callable[..., Iterable[Any]]  # progress(items, total=, label=, unit=) -> the items


@dataclass(frozen=True)
class Split:
    """The images of a shard folder that take part, with their labels in the bank's numbers.

    numbers: of each of the folder's classes; the last one is that of images without a class.
    left_out: for a protocol, images of classes that the bank lacks.
    """

    folder: ShardFolder
    rows: np.ndarray
    numbers: Tensor
    left_out: Mapping[str, Any] = field(default_factory=dict)

    @property
    def contents(self) -> np.ndarray:
        """(n,) uint64 that tell encoded images apart: checksum and size."""
        rows = self.folder.index[self.rows]
        return rows["crc32"].astype(np.uint64) << np.uint64(32) | rows["size"].astype(np.uint64)

    def record(self) -> dict[str, Any]:
        """For a protocol: how many of which images."""
        folder = self.folder
        found = {"images": len(self.rows), "of": len(folder), "index_sha256": folder.hash}
        return found | self.left_out

    @property
    def labels(self) -> Tensor:
        return self.numbers[torch.from_numpy(self.folder.labels[self.rows]).long()]


@dataclass(frozen=True)
class Asked:
    """Queries. among: (classes,) booleans, those that may be answered; ranked: the first five.

    bank: (bank rows,) booleans, those that are looked at; None: all.
    """

    split: Split
    label: str = "k-NN queries"
    among: Tensor | None = None
    ranked: bool = False
    bank: Tensor | None = None


@dataclass(frozen=True)
class KnnProtocol:
    """Labelled queries against a labelled bank. `options` is the recipe's section `evaluation`."""

    bank: Split
    queries: Split
    options: Evaluation

    @classmethod
    def of(cls, bank: ShardFolder, queries: ShardFolder, options: Evaluation) -> "KnnProtocol":
        """Evenly spread subsets where the recipe asks for them; classes are matched by name.

        UserError: the same images twice, no labels, classes that the bank lacks, unless images of
        these are left out.
        """
        if bank.hash == queries.hash:
            raise UsageError(
                f"evaluation.queries {queries.path} and the bank {bank.path} are the same images: "
                "each would find itself; name another split"
            )
        place, drop, none = str(queries.path), options.drop_unknown_classes, len(bank.classes)
        labelled, banked = _labelled(queries), _labelled(bank)
        numbers = classes.matched(
            queries.classes, place, bank.classes, f"the bank {bank.path}", drop=drop
        )
        labels = torch.from_numpy(queries.labels[labelled]).long()
        asked = labelled[classes.known(labels, numbers, place).numpy()]
        left_out = classes.record(labels, numbers)
        # another image that stands for a damaged one may be of an unknown class
        numbers = torch.where(numbers == classes.UNKNOWN, none, numbers)
        return cls(
            Split(bank, banked[subset(len(banked), options.bank_images)], torch.arange(none + 1)),
            Split(
                queries,
                asked[subset(len(asked), options.query_images)],
                torch.cat((numbers, torch.tensor([none]))),
                left_out,
            ),
            options,
        )

    def record(self, precision: str) -> dict[str, Any]:
        """What must be known to compare the numbers: stored beside them."""
        return {
            "bank": self.bank.record(),
            "queries": self.queries.record(),
            "feature": "class token, unit length",
            "k": sorted(set(self.options.k)),
            "k_at_most": len(self.bank.rows),  # a larger k takes the whole bank
            "temperature": self.options.temperature,
            "resize": self.options.resize,
            "crop": self.options.crop,
            "precision": precision,
        }

    def doubts(self) -> list[str]:
        """Why the accuracies will say less than they seem to."""
        found, names = [], f"{self.queries.folder.path} and the bank {self.bank.folder.path}"
        for left_out in self.queries.left_out.values():
            found.append(
                f"{left_out['images']} images of {left_out['classes']} classes of "
                f"{self.queries.folder.path} are left out: the bank lacks them"
            )
        shared = int(np.isin(self.queries.contents, self.bank.contents).sum())
        if shared:
            every = len(self.queries.rows)
            found.append(
                f"{shared} of {every} queries are the same images in {names}: each finds itself"
            )
        if len(self.bank.labels.unique()) == 1:
            found.append(
                f"all images of the bank {self.bank.folder.path} are of one class: every "
                "answer is right"
            )
        return found

    def say_doubts(self) -> None:
        """The doubts as warnings, from the main rank."""
        for doubt in self.doubts() if dist.is_main() else ():
            say(f"warning: k-NN accuracy: {doubt}")

    def rows_per_rank(self, queries: Split) -> int:
        """Images that a rank keeps features of, at most."""
        deals = (self._deal(split) for split in (self.bank, queries))
        return sum(deal.rounds * deal.block for deal in deals)

    def measure(
        self,
        encode: Encoder,
        kinds: int,
        device: torch.device,
        workers: int,
        *,
        progress: Progress | None = None,
    ) -> list[Answers]:
        """Which queries each of the `kinds` features of `encode` gets right. A collective."""
        [found] = self.measure_sets([Asked(self.queries)], encode, kinds, device, workers, progress)
        return found

    @torch.inference_mode()
    def measure_sets(
        self,
        sets: Sequence["Asked"],
        encode: Encoder,
        kinds: int,
        device: torch.device,
        workers: int,
        progress: Progress | None = None,
    ) -> list[list[Answers]]:
        """The same of any sets of queries, [set][kind]. A collective.

        The bank is encoded once, and queries of sets that follow each other and have the same.
        """

        def blocks(split: Split, label: str) -> tuple[list[list[Tensor]], Tensor, frozenset[str]]:
            """(unit feature rows [kind][block] of this rank's share on the CPU, all labels, names
            of all that are damaged).
            """
            bad: list[Bad] = []
            batches, used = self._batches(split, workers, bad), [torch.zeros(0, dtype=torch.long)]
            if progress is not None:
                total = len(self._deal(split).own())
                batches = progress(batches, total=total, label=label, unit="batches")
            found: list[list[Tensor]] = [[] for _ in range(kinds)]
            for images, labels in batches:
                used.append(labels)
                for kind, x in enumerate(encode(images.to(device))):
                    found[kind].append(F.normalize(x.float(), dim=1).cpu())
            return found, *self._labels(split, torch.cat(used), bad, device)

        bank_features, bank_labels, _ = blocks(self.bank, "k-NN bank")
        own, measured = self._deal(self.bank).own(), []
        before = None
        for asked in sets:
            if before is not asked.split:
                features, labels, damaged = blocks(asked.split, asked.label)
                before = asked.split
            banks = [Bank(of_kind, own) for of_kind in bank_features]
            if asked.bank is not None:
                banks = [bank.only(asked.bank) for bank in banks]
            of_kinds = [
                answers(
                    banks[kind],
                    features[kind],
                    self._deal(asked.split),
                    bank_labels=bank_labels,
                    query_labels=labels,
                    classes=len(self.bank.numbers),
                    temperature=self.options.temperature,
                    k=self.options.k,
                    device=device,
                    among=asked.among,
                    ranked=asked.ranked,
                )
                for kind in range(kinds)
            ]
            about = {"labels": labels, "damaged": damaged}
            measured.append([replace(of_kind, **about) for of_kind in of_kinds])
        return measured

    def _deal(self, split: Split) -> Deal:
        return Deal(len(split.rows), self.options.batch_size)

    def _places(self, split: Split) -> list[int]:
        return [i for span in self._deal(split).own() for i in span]

    def _labels(
        self, split: Split, own: Tensor, bad: list[Bad], device: torch.device
    ) -> tuple[Tensor, frozenset[str]]:
        """Those of the images that were used: a damaged one gives way to another. A collective.

        With the names of all that are damaged.
        """
        replaced = [entry for rank in dist.all_gather_objects(bad) for entry in rank]
        if not replaced:
            return split.labels, frozenset()
        if dist.is_main():
            shard, key, cause = replaced[0]
            say(
                f"warning: {len(replaced)} damaged images of {split.folder.path} are replaced by "
                f"others in the evaluation; the first: {SampleError(shard, key, cause)}"
            )
        labels = torch.full((len(split.rows),), -1)
        labels[self._places(split)] = split.numbers[own]
        damaged = frozenset(f"{shard}/{key}" for shard, key, _ in replaced)
        return dist.all_max(labels.to(device)).cpu(), damaged

    def _batches(
        self, split: Split, workers: int, bad: list[Bad]
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """This rank's blocks, one batch each (only the set's last block is short)."""
        return eval_batches(
            split.folder,
            split.rows[self._places(split)],
            resize=self.options.resize,
            crop=self.options.crop,
            batch_size=self.options.batch_size,
            workers=workers,
            bad=bad,
        )


def _labelled(folder: ShardFolder) -> np.ndarray:
    rows = np.flatnonzero(folder.labels >= 0)
    if not len(rows):
        raise UserError(f"{folder.path} has no labels: k-NN needs them in bank and queries")
    return rows
