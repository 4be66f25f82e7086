"""How sequences are packed into the rows of a stream, and which of them a residual branch drops."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from poa_ds.system.transfer import send
from poa_kernels.add_ln import Rows


@dataclass(frozen=True)
class Packing:
    """How the rows of a stream are cut: segments of (sequences, tokens per sequence).

    angles: of each segment what its places turn queries and keys by (`poa_kernels.rope`); (): none.
    """

    segments: tuple[tuple[int, int], ...]
    angles: tuple[Tensor, ...] = field(default=(), compare=False, repr=False)

    def split(self, rows: Tensor) -> list[Tensor]:
        """(R, C) -> one (sequences, tokens, C) view per segment."""
        pieces = rows.split([n * tokens for n, tokens in self.segments])
        return [
            piece.unflatten(0, (n, tokens))
            for piece, (n, tokens) in zip(pieces, self.segments, strict=True)
        ]


@dataclass(frozen=True)
class Drop:
    """Stochastic depth of one residual branch: the sequences it runs on; the others pass by.

    rows: of these sequences in the stream, factor: all / kept sequences of the segment.
    """

    rows: Rows
    packing: Packing


@dataclass(frozen=True)
class BlockPlan:
    """What one block does to each stream: whether it runs, and on which sequences.

    drops: per stream (attention branch, MLP branch), or None without stochastic depth.
    """

    packing: Packing
    chosen: tuple[bool, ...]
    drops: tuple[tuple[Drop, Drop] | None, ...]


def draw_drops(
    packing: Packing,
    rate: float,
    generator: torch.Generator,
    *,
    count: int = 1,
    device: torch.device | str = "cpu",
) -> list[Drop]:
    """`count` random choices of sequences, each for one residual branch, segment by segment.

    rate > 0.1: exactly max(int(n (1 - rate)), 1) of n sequences, scaled by n / k (the
    batch-subset variant of DINOv2); otherwise each with probability 1 - rate, scaled by its
    inverse (docs/method.md 2). The CPU draws sequences; the device makes rows of them.
    """

    exact = rate > 0.1

    def choose(n: int) -> Tensor:
        if exact:
            return torch.randperm(n, generator=generator)[: max(int(n * (1 - rate)), 1)]
        return (torch.rand(n, generator=generator) >= rate).nonzero().flatten()

    sizes, tokens = zip(*packing.segments, strict=True)
    drawn = [[choose(n) for n in sizes] for _ in range(count)]
    kept = [[len(chosen) for chosen in choice] for choice in drawn]
    factors = [
        [n / max(k, 1) if exact else 1 / (1 - rate) for n, k in zip(sizes, ks, strict=True)]
        for ks in kept
    ]
    packings = [Packing(tuple(zip(ks, tokens, strict=True))) for ks in kept]
    rows = _rows(drawn, packing, factors, device)
    return [Drop(*pair) for pair in zip(rows, packings, strict=True)]


def _rows(
    drawn: Sequence[Sequence[Tensor]],
    packing: Packing,
    factors: Sequence[Sequence[float]],
    device: torch.device | str,
) -> list[Rows]:
    """The rows of each choice's sequences, all choices in a few operations and one transfer.

    factors: of each choice's segments. What is sent has one column per chosen sequence.
    """
    lengths = [n * tokens for n, tokens in packing.segments]
    total, firsts = sum(lengths), list(itertools.accumulate(lengths, initial=0))[:-1]
    tokens = torch.tensor([tokens for _, tokens in packing.segments])
    counts = torch.tensor([[len(kept) for kept in choice] for choice in drawn])
    taken = counts @ tokens  # rows of each choice
    number = torch.arange(len(drawn))[:, None].expand_as(counts)
    columns = (tokens.expand_as(counts), torch.tensor(firsts).expand_as(counts))
    columns = (*columns, (taken.cumsum(0) - taken)[number], number * total)
    table = torch.stack([c.flatten() for c in columns]).repeat_interleave(counts.flatten(), 1)
    places = table[0].cumsum(0) - table[0]  # of a sequence's first row among all that are taken
    table[1] += torch.cat([kept for choice in drawn for kept in choice]) * table[0] - places
    scales = torch.tensor(factors).flatten().repeat_interleave(counts.flatten())
    sent = send(torch.cat((table.int(), scales.view(torch.int32)[None])), device)

    rows = torch.arange(int(taken.sum()), device=device)
    of = torch.arange(sent.shape[1], device=device)
    of = of.repeat_interleave(sent[0], output_size=len(rows))
    shift, begin, choice, scale = sent[1:, of]
    inverse = torch.full((len(drawn) * total,), -1, dtype=torch.int32, device=device)
    inverse.index_copy_(0, rows + shift + choice, (rows - begin).int())
    parts = ((rows + shift).split(taken.tolist()), inverse.split(total))
    scale = scale.view(torch.float32).split(taken.tolist())
    return [Rows(*row) for row in zip(*parts, scale, strict=True)]
