"""Nearest neighbours of queries in a bank that is spread over the ranks, and their vote.

Neighbours are ordered by (similarity, number in the bank), a bank row's features are computed in
the same batch and compared in the same block on any number of ranks: so 1 and N ranks agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed
from einops import rearrange
from torch import Tensor

from poa_ds.evaluate.accuracies import FIRST, best_first
from poa_ds.system import dist

NO_NEIGHBOUR = torch.iinfo(torch.int64).min
_LOW = 0xFFFFFFFF  # the lower half of a key: a bank number, counted backwards
_TOGETHER = 32  # bank blocks whose similarities are ranked in one go
BANK_SHARE = 0.5  # of the device's free memory, which the bank may take


@dataclass(frozen=True)
class Deal:
    """Which rows of a set each rank takes: blocks of `block` rows, dealt out in turn."""

    rows: int
    block: int

    @property
    def rounds(self) -> int:
        """The number of blocks that the busiest rank takes."""
        return -(-self.rows // (self.block * dist.world_size()))

    def span(self, turn: int, rank: int) -> range:
        """The rows of that rank's block in that turn; empty past the end."""
        first = (turn * dist.world_size() + rank) * self.block
        return range(min(first, self.rows), min(first + self.block, self.rows))

    def own(self) -> list[range]:
        """This rank's blocks, without empty ones."""
        spans = [self.span(turn, dist.rank()) for turn in range(self.rounds)]
        return [span for span in spans if span]


@dataclass
class Bank:
    """This rank's share of the bank: unit rows (n, C) and their numbers (n,), block by block."""

    features: list[Tensor] = field(default_factory=list)
    numbers: Sequence[range | Tensor] = field(default_factory=list)

    def only(self, rows: Tensor) -> "Bank":
        """The rows whose numbers are true in (rows of the whole bank,) booleans."""
        numbers = [_tensor(own) for own in self.numbers]
        kept = [rows[own] for own in numbers]
        return Bank(
            [x[k.to(x.device)] for x, k in zip(self.features, kept, strict=True)],
            [own[k] for own, k in zip(numbers, kept, strict=True)],
        )

    def near(self, device: torch.device) -> "Bank":
        """The bank with its features on the device if they fit there, to be sent once for all."""
        if device.type == "cuda":
            needed = sum(x.numel() * x.element_size() for x in self.features)
            if needed > BANK_SHARE * torch.cuda.mem_get_info(device)[0]:
                return self  # a few blocks at a time, for every turn anew
        return Bank([x.to(device) for x in self.features], self.numbers)

    def groups(self, device: torch.device) -> Iterator[tuple[list[Tensor], Tensor]]:
        """(feature blocks, numbers of all their rows), on the device, a few at a time."""
        for first in range(0, len(self.features), _TOGETHER):
            spans = self.numbers[first : first + _TOGETHER]
            numbers = [_tensor(own, device) for own in spans]
            blocks = [x.to(device) for x in self.features[first : first + _TOGETHER]]
            yield blocks, torch.cat(numbers)


def _tensor(numbers: range | Tensor, device: torch.device | None = None) -> Tensor:
    if isinstance(numbers, range):
        return torch.arange(numbers.start, numbers.stop, device=device)
    return numbers.to(device)


def subset(count: int, wanted: int) -> np.ndarray:
    """`wanted` of the numbers 0 .. count - 1, evenly spread; all of them for 0 or too many."""
    wanted = count if wanted == 0 else min(wanted, count)
    return np.arange(wanted, dtype=np.int64) * count // max(wanted, 1)


def rank_keys(similarity: Tensor, numbers: Tensor) -> Tensor:
    """(Q, n) float32, (n,) -> (Q, n) int64 that sorts by similarity, then by smaller number."""
    bits = (similarity + 0.0).view(torch.int32)  # + 0.0: minus zero equals zero
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (rising.long() << 32) | (_LOW - numbers)


def read_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(similarities float32, bank numbers int64): the inverse of `rank_keys`."""
    rising = (keys >> 32).int()
    bits = rising ^ ((rising >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), _LOW - (keys & _LOW)


def local_neighbours(queries: Sequence[Tensor], bank: Bank, k: int) -> list[Tensor]:
    """Per query block (Q, C): the keys (Q, k) of its best rows in this rank's bank, best first."""
    best = [torch.full((len(q), k), NO_NEIGHBOUR, device=q.device) for q in queries]
    for blocks, numbers in bank.groups(queries[0].device):
        for i, q in enumerate(queries):
            # block by block: the same product in the same shape whatever the number of ranks
            similarity = torch.cat([q @ block.T for block in blocks], dim=1)
            keys = torch.cat((best[i], rank_keys(similarity, numbers)), dim=1)
            best[i] = keys.topk(k, dim=1).values
    return best


def neighbours(own: Tensor, turn: int, deal: Deal, bank: Bank, k: int) -> Tensor:
    """Keys (Q, k) of the nearest bank rows of all ranks for this rank's queries (Q, C) of a turn.

    A collective: every rank calls it for every turn, some with no queries in the last one.
    """
    ranks = dist.world_size()
    if ranks == 1:
        return local_neighbours([own], bank, k)[0]
    padded = own.new_zeros(deal.block, own.shape[1])
    padded[: len(own)] = own
    gathered = own.new_empty(ranks * deal.block, own.shape[1])
    torch.distributed.all_gather_into_tensor(gathered, padded)
    counts = [len(deal.span(turn, rank)) for rank in range(ranks)]
    pieces = [x[:n] for x, n in zip(gathered.split(deal.block), counts, strict=True)]
    found = local_neighbours(pieces, bank, k)
    sent = torch.full((ranks, deal.block, k), NO_NEIGHBOUR, device=own.device)
    for rank, keys in enumerate(found):
        sent[rank, : len(keys)] = keys
    received = torch.empty_like(sent)
    torch.distributed.all_to_all_single(received, sent)
    candidates = rearrange(received[:, : len(own)], "ranks queries k -> queries (ranks k)")
    return candidates.topk(k, dim=1).values


def vote(
    similarity: Tensor, labels: Tensor, classes: int, temperature: float, k: Sequence[int]
) -> dict[int, Tensor]:
    """Class scores (Q, classes) for each k, in float64.

    similarity, labels (Q, K): of the K nearest, best first. Weights are the softmax of
    similarity / temperature over all K; a class scores the weights of its members among the
    first k (docs/method.md 9).
    """
    weights = (similarity.double() / temperature).softmax(1)
    none = weights.new_zeros(len(weights), classes)
    return {n: none.scatter_add(1, labels[:, :n], weights[:, :n]) for n in k}


@dataclass(frozen=True)
class Answers:
    """What the vote said of one kind of features.

    right: for each k (Q,) bool on the CPU, whether each query of all ranks is put into its class.
    finite: whether all features are; else nothing is. first: for each k the classes with the most
    votes, best first (Q, 5), -1 where fewer have one; empty where they were not asked for.
    labels: (Q,) of the queries. damaged: names of images that gave way to others.
    """

    right: Mapping[int, Tensor]
    finite: bool = True
    first: Mapping[int, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    damaged: frozenset[str] = frozenset()

    def percent(self) -> dict[int, float]:
        """Accuracy for each k; NaN without finite features."""
        if not self.finite:
            return dict.fromkeys(self.right, float("nan"))
        return {k: 100 * int(right.sum()) / len(right) for k, right in self.right.items()}


def answers(
    bank: Bank,
    queries: Sequence[Tensor],
    deal: Deal,
    *,
    bank_labels: Tensor,
    query_labels: Tensor,
    classes: int,
    temperature: float,
    k: Sequence[int],
    device: torch.device,
    among: Tensor | None = None,
    ranked: bool = False,
) -> Answers:
    """Of the queries of all ranks, the same on each, for each k.

    queries: this rank's blocks, as `deal` deals them. Labels: of every row of queries and of the
    whole bank, of which `bank` may be a part, the same on all ranks. A k beyond it takes all of
    it. among: (classes,) booleans, those that may be answered; None: all. ranked: with `first`. A
    collective.
    """
    if not _all_finite([*bank.features, *queries], device):
        none = torch.zeros(deal.rows, dtype=torch.bool)
        return Answers(dict.fromkeys(k, none), finite=False)
    bank, members, k = bank.near(device), bank_labels.to(device), sorted(set(k))
    rows = torch.tensor(sum(map(len, bank.features)), device=device)
    most = min(k[-1], dist.on_host(dist.all_sum(rows)))
    width = max([x.shape[1] for x in (*bank.features[:1], *queries[:1])], default=0)
    width = dist.on_host(
        dist.all_max(torch.tensor(width, device=device))
    )  # a rank may have no rows
    right = torch.zeros(len(k), deal.rows, dtype=torch.int32, device=device)
    first = torch.zeros(len(k), deal.rows, FIRST, dtype=torch.int64, device=device)
    for turn in range(deal.rounds):
        span = deal.span(turn, dist.rank())
        own = queries[turn].to(device) if span else torch.zeros(0, width, device=device)
        similarity, numbers = read_keys(neighbours(own, turn, deal, bank, most))
        scores = vote(similarity, members[numbers], classes, temperature, k)
        if among is not None:
            scores = {n: s.masked_fill(~among.to(device), -1.0) for n, s in scores.items()}
        truth = query_labels[span.start : span.stop].to(device)
        found = torch.stack([s.argmax(1) == truth for s in scores.values()])
        right[:, span.start : span.stop] = found
        if ranked:
            first[:, span.start : span.stop] = torch.stack([*map(_with_votes, scores.values())])
    everywhere = torch.tensor(dist.on_host(dist.all_sum(right))).bool()
    every = torch.tensor(dist.on_host(dist.all_sum(first))) if ranked else ()
    return Answers(
        dict(zip(k, everywhere, strict=True)),
        first=dict(zip(k, every, strict=True)) if ranked else {},
    )


def _with_votes(scores: Tensor) -> Tensor:
    """(Q, FIRST): `best_first` of those that have a vote."""
    return best_first(scores.masked_fill(scores <= 0, -torch.inf))


def _all_finite(tensors: Sequence[Tensor], device: torch.device) -> bool:
    return not dist.any_rank(any(not bool(x.isfinite().all()) for x in tensors), device)
