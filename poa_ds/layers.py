"""The elastic layers of a transformer and its lockstep block.

No layer remembers a size: it reads the width from the last axis of its input, uses the leading
rows and columns of its weights, and rescales its input by max width / width (REFERENCE.md 1).
A stream is a matrix of packed rows (sequences one after the other); a block carries one or two
streams at once, so that every rank enters every block once per step (DESIGN.md 3.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Packing:
    """How the rows of a stream are cut: segments of (sequences, tokens per sequence)."""

    segments: tuple[tuple[int, int], ...]

    def split(self, rows: Tensor) -> list[Tensor]:
        """(R, C) -> one (sequences, tokens, C) view per segment."""
        pieces = rows.split([n * tokens for n, tokens in self.segments])
        return [
            piece.unflatten(0, (n, tokens))
            for piece, (n, tokens) in zip(pieces, self.segments, strict=True)
        ]


@dataclass(frozen=True)
class Kept:
    """The sequences that one residual branch runs on; the others pass unchanged.

    rows (r,): their row numbers in the stream. factor (r, 1): all / kept sequences of the segment.
    """

    rows: Tensor
    factor: Tensor
    packing: Packing


@dataclass(frozen=True)
class BlockPlan:
    """What one block does to each stream: whether it runs, and on which sequences.

    kept: per stream (attention branch, MLP branch), or None without stochastic depth.
    """

    packing: Packing
    chosen: tuple[bool, ...]
    kept: tuple[tuple[Kept, Kept] | None, ...]


def keep_sequences(packing: Packing, rate: float, generator: torch.Generator) -> Kept:
    """A random choice of sequences for one residual branch, segment by segment.

    rate > 0.1: exactly max(int(n (1 - rate)), 1) of n sequences, scaled by n / k (the
    batch-subset variant of DINOv2); otherwise each with probability 1 - rate, scaled by its
    inverse (REFERENCE.md 2).
    """
    rows, factors, segments, first = [], [], [], 0
    for n, tokens in packing.segments:
        if rate > 0.1:
            chosen = torch.randperm(n, generator=generator)[: max(int(n * (1 - rate)), 1)]
            factor = n / len(chosen) if n else 1.0
        else:
            chosen = (torch.rand(n, generator=generator) >= rate).nonzero().flatten()
            factor = 1 / (1 - rate)
        chosen_rows = first + chosen[:, None] * tokens + torch.arange(tokens)
        rows.append(chosen_rows.flatten())
        factors.append(torch.full((chosen_rows.numel(), 1), factor))
        segments.append((len(chosen), tokens))
        first += n * tokens
    packed = Packing(tuple(segments))
    return Kept(torch.cat(rows), torch.cat(factors), packed)


def on_device(choices: Sequence[Kept], device: torch.device | str) -> list[Kept]:
    """The choices with their tensors on the device, which travel there together."""
    sizes = [len(kept.rows) for kept in choices]
    rows = torch.cat([kept.rows for kept in choices]).to(device).split(sizes)
    factors = torch.cat([kept.factor for kept in choices]).to(device).split(sizes)
    packings = (kept.packing for kept in choices)
    return [Kept(*parts) for parts in zip(rows, factors, packings, strict=True)]


class ElasticLinear(nn.Linear):
    """Linear layer of which the leading rows and columns are used.

    x (R, in), out -> (R, out), in <= in_features, out <= out_features; the input is scaled by
    in_features / in, the bias is not.
    """

    def forward(self, x: Tensor, out: int) -> Tensor:
        width = x.shape[-1]
        weight, bias = self.weight[:out, :width], self.bias[:out]
        if width == self.in_features:
            return F.linear(x, weight, bias)
        # rows outnumber weights: cheaper than scaling x here, or its gradient in the backward
        return F.linear(x, weight * (self.in_features / width), bias)


class ElasticLayerNorm(nn.LayerNorm):
    """Layer norm over the active channels."""

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        return F.layer_norm(x, (c,), self.weight[:c], self.bias[:c], self.eps)


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[: x.shape[-1]]


class Attention(nn.Module):
    """Self-attention of the first width / head_dim heads.

    The rows of qkv are stored head by head (head, q|k|v, channel), so that the slice of the
    first heads is a row prefix like every other slice.
    """

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = ElasticLinear(dim, 3 * dim)
        self.proj = ElasticLinear(dim, dim)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        width = x.shape[-1]
        mixed = [self._attend(part) for part in packing.split(self.qkv(x, out=3 * width))]
        return self.proj(torch.cat(mixed), out=width)

    def _attend(self, qkv: Tensor) -> Tensor:
        """(n, tokens, 3 width) -> (n * tokens, width)."""
        heads = qkv.unflatten(-1, (-1, 3, self.head_dim))  # (n, tokens, heads, 3, D)
        q, k, v = heads.permute(3, 0, 2, 1, 4)  # (n, heads, tokens, D) each
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


class Mlp(nn.Module):
    """Two linear layers with GELU; the hidden width is ratio x the active width."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.fc1 = ElasticLinear(dim, ratio * dim)
        self.fc2 = ElasticLinear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        return self.fc2(F.gelu(self.fc1(x, out=self.ratio * width)), out=width)


class Block(nn.Module):
    """A transformer block that all streams pass together.

    A stream that does not use the block leaves as a new tensor (x * 1): ZeRO-3 counts the
    outputs of every block, and they must be as many on every rank.
    """

    def __init__(
        self, dim: int, head_dim: int, mlp_ratio: int, layer_scale: float, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = ElasticLayerNorm(dim, eps), ElasticLayerNorm(dim, eps)
        self.attn, self.mlp = Attention(dim, head_dim), Mlp(dim, mlp_ratio)
        self.ls1, self.ls2 = LayerScale(dim, layer_scale), LayerScale(dim, layer_scale)

    def forward(self, *streams: Tensor, plan: BlockPlan) -> tuple[Tensor, ...]:
        return tuple(
            self._one(x, plan.packing, kept) if chosen else x * 1
            for x, chosen, kept in zip(streams, plan.chosen, plan.kept, strict=True)
        )

    def _one(self, x: Tensor, packing: Packing, kept: tuple[Kept, Kept] | None) -> Tensor:
        def attention(y: Tensor, pack: Packing) -> Tensor:
            return self.attn(self.norm1(y), pack)

        def mlp(y: Tensor, _: Packing) -> Tensor:
            return self.mlp(self.norm2(y))

        attention_kept, mlp_kept = kept or (None, None)
        first, second = self.ls1.gamma[: x.shape[-1]], self.ls2.gamma[: x.shape[-1]]
        x = residual(x, attention, packing, attention_kept, first)
        return residual(x, mlp, packing, mlp_kept, second)


def residual(
    x: Tensor,
    branch: Callable[[Tensor, Packing], Tensor],
    packing: Packing,
    kept: Kept | None,
    gamma: Tensor | None = None,
) -> Tensor:
    """x + gamma * branch(x); stochastic depth lets only the kept sequences take the branch."""
    if kept is None:
        out = branch(x, packing)
        # product and sum in one pass over the rows
        return x + out if gamma is None else torch.addcmul(x, out, gamma)
    out = branch(x[kept.rows], kept.packing)
    out = out if gamma is None else out * gamma
    return x.index_add(0, kept.rows, out * kept.factor.to(out.dtype))


def initialise(modules: Sequence[nn.Module], scheme: str) -> None:
    """Linear layers: "published" truncated normal 0.02, "xavier", or "torch" (as they are)."""
    for module in modules:
        if isinstance(module, nn.Linear) and scheme != "torch":
            if scheme == "published":
                nn.init.trunc_normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def head_major(qkv: Tensor, head_dim: int) -> Tensor:
    """Rows (q|k|v, head, channel) -> (head, q|k|v, channel). Weight (3C, in) or bias (3C,)."""
    return qkv.unflatten(0, (3, -1, head_dim)).transpose(0, 1).flatten(0, 2).contiguous()


def third_major(qkv: Tensor, head_dim: int) -> Tensor:
    """The inverse of `head_major`."""
    return qkv.unflatten(0, (-1, 3, head_dim)).transpose(0, 1).flatten(0, 2).contiguous()
