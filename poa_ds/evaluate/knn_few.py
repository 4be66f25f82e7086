"""k-NN in banks of few labels: all draws of all numbers are parts of one bank, read once."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from poa_ds.evaluate import split
from poa_ds.evaluate.knn_protocol import Asked, KnnProtocol
from poa_ds.evaluate.neighbours import Answers

BySet = Mapping[str, Sequence[Answers]]  # of every draw


@dataclass(frozen=True)
class Parts:
    """A bank, and what is looked at of it.

    protocol: with every image of any part. options: for each number of labels, as `split.each`.
    drawn: for each of them (bank rows,) booleans of every draw; a None is all.
    """

    protocol: KnnProtocol
    options: Sequence[argparse.Namespace]
    drawn: Sequence[Sequence[Tensor | None]]

    @classmethod
    def of(cls, protocol: KnnProtocol, args: argparse.Namespace) -> "Parts":
        """As the options say. UsageError, UserError: they contradict each other, or the bank."""
        options, draws = split.each(args), range(args.seed, args.seed + split.draws_of(args))
        if not split.amount(options[0]):
            return cls(protocol, options, [[None]])
        bank = protocol.bank

        def keys() -> list[str]:
            return [*map(bank.folder.key, bank.rows)]

        labels = bank.labels
        drawn = [
            [split.few(labels, own, seed=seed, keys=keys) for seed in draws] for own in options
        ]
        used = torch.stack([part for parts in drawn for part in parts]).any(0)
        bank = replace(bank, rows=bank.rows[used.numpy()])
        drawn = [[part[used] for part in parts] for parts in drawn]
        return cls(replace(protocol, bank=bank), options, drawn)

    def protocol_of(self, number: int) -> KnnProtocol:
        """What the first draw of the number-th options is asked in."""
        bank, [first, *_] = self.protocol.bank, self.drawn[number]
        if first is None:
            return self.protocol
        return replace(self.protocol, bank=replace(bank, rows=bank.rows[first.numpy()]))

    def asked(self, sets: Mapping[str, Asked]) -> list[Asked]:
        """Every set of every draw of every number, those of one set behind each other."""
        every = [part for parts in self.drawn for part in parts]
        return [replace(of, bank=part) for of in sets.values() for part in every]

    def sorted(self, sets: Mapping[str, Asked], found: Sequence[Answers]) -> list[BySet]:
        """For each number: set -> the answers of its draws, of what `asked` has asked."""
        rest, by_number = iter(found), [{} for _ in self.drawn]
        for name in sets:
            for own, parts in zip(by_number, self.drawn, strict=True):
                own[name] = [next(rest) for _ in parts]
        return by_number


def percent(draws: Sequence[Answers]) -> dict[int, float]:
    """k -> the mean of the draws' accuracies; NaN without finite features."""
    found = [one.percent() for one in draws]
    return {k: fmean(one[k] for one in found) for k in found[0]}
