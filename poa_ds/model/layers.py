"""The elastic layers of a transformer and its lockstep block.

No layer remembers a size: it reads the width from the last axis of its input, uses the leading
rows and columns of its weights, and rescales its input by max width / width (docs/method.md 1).
A stream is a matrix of packed rows (sequences one after the other); a block carries all
streams at once, so that every rank enters every block once per step (docs/architecture.md).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.model.options import QkvBias
from poa_ds.model.packing import BlockPlan, Packing
from poa_ds.model.row_orders import with_key_bias
from poa_ds.model.shape import gated_units
from poa_kernels.add_ln import add_norm_rows, add_rows, norm_rows, of_streams
from poa_kernels.attention import attention
from poa_kernels.gelu import gelu
from poa_kernels.rope import rotate
from poa_kernels.slices import leading, rows_of_all, wide
from poa_kernels.two_stream_linear import two_stream_linear


def elastic_linear(
    streams: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    outs: Sequence[int],
    exponent: float,
) -> tuple[Tensor, ...]:
    """two_stream_linear for any number of streams, two at a time in their order."""
    pairs = (slice(first, first + 2) for first in range(0, len(streams), 2))
    return tuple(
        y
        for two in pairs
        for y in two_stream_linear(streams[two], weight, bias, outs[two], exponent)
    )


class ElasticLinear(nn.Linear):
    """Linear layer of which the leading rows and columns are used, by all streams in one call.

    x (R, in), out -> (R, out), in <= in_features, out <= out_features; the input is scaled by
    alpha = (in_features / in) ** input_scale (POA 3.2, where it is 1), the bias is not.
    """

    input_scale = 1.0

    def forward(self, *streams: Tensor, outs: Sequence[int]) -> tuple[Tensor, ...]:
        return elastic_linear(streams, self.weight, self.bias, outs, self.input_scale)

    def of_tokens(self, *tokens: Tensor) -> tuple[Tensor, ...]:
        """All rows of the weight for what leaves a backbone, which is finer than the weights."""
        streams = [x.to(self.weight.dtype) for x in tokens]
        return self(*streams, outs=[self.out_features] * len(streams))


class QkvLinear(ElasticLinear):
    """The layer of queries, keys and values without all of its bias.

    bias: (head, q|v, channel), where keys have none, or None. The rows of the weight are those of
    `Attention`.
    """

    def __init__(self, dim: int, head_dim: int, parts: QkvBias) -> None:
        super().__init__(dim, 3 * dim, bias=parts != "none")
        self.head_dim = head_dim
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.detach()[: 2 * dim].clone())

    def forward(self, *streams: Tensor, outs: Sequence[int]) -> tuple[Tensor, ...]:
        whole = None if self.bias is None else with_key_bias(self.bias, self.head_dim)
        return elastic_linear(streams, self.weight, whole, outs, self.input_scale)


def scale_inputs(network: nn.Module, exponent: float) -> None:
    """Let every layer of the network scale a slice's input by (width / active) ** exponent."""
    for module in network.modules():
        if hasattr(module, "input_scale"):
            module.input_scale = exponent


class ElasticLayerNorm(nn.LayerNorm):
    """Layer norm over the active channels.

    widths: so many, dim / widths apart, have weight and bias of their own, rows (widths, dim) of
    which the leading channels count (switchable norms: Yu et al., arXiv 1812.08928); 0: all share.
    """

    def __init__(self, dim: int, eps: float, widths: int = 0) -> None:
        super().__init__(dim, eps)
        self.widths = widths
        if widths:
            self.weight = nn.Parameter(torch.ones(widths, dim))
            self.bias = nn.Parameter(torch.zeros(widths, dim))

    def row(self, width: int) -> int:
        """Of weight and bias, where every width has its own."""
        place, rest = divmod(width * self.widths, self.normalized_shape[0])
        assert place and not rest, (width, self.widths)
        return place - 1

    def of_width(self, parameter: Tensor, width: int) -> Tensor:
        """What of weight or bias that width uses."""
        return leading(parameter[self.row(width)] if self.widths else parameter, width)

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        weight, bias = (self.of_width(p, c) for p in (self.weight, self.bias))
        return F.layer_norm(x, (c,), weight, bias, self.eps)

    def finely(self, x: Tensor) -> Tensor:
        """The same in float32 or better, whatever x and the weights are."""
        x, c = wide(x), x.shape[-1]
        weight, bias = (self.of_width(p, c).to(x.dtype) for p in (self.weight, self.bias))
        return F.layer_norm(x, (c,), weight, bias, self.eps)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Vectors of a network whose widths share them are those of every width."""
        for name in ("weight", "bias") if self.widths else ():
            found = state.get(prefix + name)
            if found is not None and found.ndim == 1:
                state[prefix + name] = found.expand(self.widths, -1)
        super()._load_from_state_dict(state, prefix, *rest)


class LayerScale(nn.Module):
    """A learned factor per channel; the residual sum applies it."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))


class Affine(Protocol):
    """What attention and MLP ask of a linear layer: ElasticLinear, or one made for a pass."""

    weight: Tensor
    bias: Tensor
    input_scale: float

    def __call__(self, *streams: Tensor, outs: Sequence[int]) -> tuple[Tensor, ...]: ...


class Attention(nn.Module):
    """Self-attention of the first width / head_dim heads.

    The rows of qkv are stored head by head (head, q|k|v, channel), so that the slice of the
    first heads is a row prefix like every other slice. linear: the class of its layers.
    angles: of each segment (`Packing`); all heads are turned alike, so that a slice has the places
    of the whole.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        linear: Callable[[int, int], nn.Module] = ElasticLinear,
        qkv_bias: QkvBias = "full",
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        whole = qkv_bias == "full"
        self.qkv = linear(dim, 3 * dim) if whole else QkvLinear(dim, head_dim, qkv_bias)
        self.proj = linear(dim, dim)

    def forward(
        self, *streams: Tensor, packings: Sequence[Packing], angles: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        return self.attend(streams, packings, self.qkv, self.proj, angles)

    def attend(
        self,
        streams: Sequence[Tensor],
        packings: Sequence[Packing],
        qkv: Affine,
        proj: Affine,
        angles: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """The same with these layers."""
        widths = [x.shape[-1] for x in streams]
        packed = qkv(*streams, outs=[3 * width for width in widths])
        if angles:  # of each segment, whichever of its sequences are there
            packed = [
                rotate(x, packing.segments, self.head_dim, angles)
                for x, packing in zip(packed, packings, strict=True)
            ]
        mixed = [
            attention(x, packing.segments, self.head_dim)
            for x, packing in zip(packed, packings, strict=True)
        ]
        return proj(*mixed, outs=widths)


class Mlp(nn.Module):
    """Two linear layers with GELU; the hidden width is ratio x the active width."""

    def __init__(
        self, dim: int, ratio: int, linear: Callable[[int, int], nn.Module] = ElasticLinear
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.fc1, self.fc2 = linear(dim, ratio * dim), linear(ratio * dim, dim)

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        return self.mix(streams, self.fc1, self.fc2)

    def mix(self, streams: Sequence[Tensor], fc1: Affine, fc2: Affine) -> tuple[Tensor, ...]:
        """The same with these layers."""
        widths = [x.shape[-1] for x in streams]
        hidden = [self.ratio * width for width in widths]
        # the gradient of fc1's bias comes out of GELU's backward pass
        before = elastic_linear(streams, fc1.weight, fc1.bias.detach(), hidden, fc1.input_scale)
        return fc2(*[gelu(h, fc1.bias) for h in before], outs=widths)


class SwiGlu(nn.Module):
    """A gated MLP, silu(gate) x value. units: of the intact network; a slice has gated_units.

    The rows of fc1 are stored unit by unit (unit, gate|value), so that a slice is a prefix.
    """

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.dim, self.units = dim, units
        self.fc1, self.fc2 = ElasticLinear(dim, 2 * units), ElasticLinear(units, dim)

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        widths = [x.shape[-1] for x in streams]
        units = [gated_units(self.units, self.dim, width) for width in widths]
        both = self.fc1(*streams, outs=[2 * count for count in units])
        pairs = [h.unflatten(-1, (-1, 2)).unbind(-1) for h in both]
        return self.fc2(*[F.silu(gate) * value for gate, value in pairs], outs=widths)


class Block(nn.Module):
    """A transformer block that all streams pass together.

    A stream that does not use the block leaves as a new tensor (x * 1): ZeRO-3 counts the
    outputs of every block, and they must be as many on every rank.
    """

    linear: type[nn.Module] = ElasticLinear

    def __init__(
        self,
        dim: int,
        head_dim: int,
        mlp_ratio: int,
        layer_scale: float,
        *,
        eps: float,
        swiglu: int = 0,
        qkv_bias: QkvBias = "full",
        norm_widths: int = 0,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (ElasticLayerNorm(dim, eps, norm_widths) for _ in range(2))
        self.attn = Attention(dim, head_dim, self.linear, qkv_bias)
        self.mlp = SwiGlu(dim, swiglu) if swiglu else Mlp(dim, mlp_ratio, self.linear)
        self.ls1, self.ls2 = LayerScale(dim, layer_scale), LayerScale(dim, layer_scale)

    def forward(self, *streams: Tensor, plan: BlockPlan) -> tuple[Tensor, ...]:
        members = [i for i, chosen in enumerate(plan.chosen) if chosen]
        drops = [plan.drops[i] or (None, None) for i in members]
        first, second = ([d and d.rows for d in branch] for branch in zip(*drops, strict=True))
        packings = [d.packing if d else plan.packing for d, _ in drops]
        one, two, of = self.norm1, self.norm2, self._vectors([streams[i] for i in members])

        pairs = [
            norm_rows(streams[i], *of_x[:2], eps=one.eps, taken=taken)
            for i, of_x, taken in zip(members, of, first, strict=True)
        ]
        attended = self.attend([y for _, y in pairs], packings, plan)
        pairs = [
            add_norm_rows(x, y, *of_x[2:5], eps=two.eps, added=a, taken=t)
            for (x, _), y, of_x, a, t in zip(pairs, attended, of, first, second, strict=True)
        ]
        mixed = self.mix([y for _, y in pairs], plan)
        done = iter(
            add_rows(x, y, of_x[5], added=a)
            for (x, _), y, of_x, a in zip(pairs, mixed, of, second, strict=True)
        )
        return tuple(
            next(done) if chosen else x * 1 for x, chosen in zip(streams, plan.chosen, strict=True)
        )

    def _vectors(self, streams: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """For each stream weight and bias of norm1, gamma of ls1, the same of the second branch."""
        one, two, gammas = self.norm1, self.norm2, (self.ls1.gamma, self.ls2.gamma)
        norms = (one.weight, one.bias, two.weight, two.bias)
        if not one.widths:
            return of_streams((*norms[:2], gammas[0], *norms[2:], gammas[1]), streams)
        rows = rows_of_all(norms, [one.row(x.shape[1]) for x in streams])
        own = [of_streams(row, [x])[0] for row, x in zip(rows, streams, strict=True)]
        pairs = zip(own, of_streams(gammas, streams), strict=True)
        return [(*norm[:2], first, *norm[2:], second) for norm, (first, second) in pairs]

    def attend(
        self, streams: Sequence[Tensor], packings: Sequence[Packing], plan: BlockPlan
    ) -> tuple[Tensor, ...]:
        """The attention branch of the streams that use the block."""
        return self.attn(*streams, packings=packings, angles=plan.packing.angles)

    def mix(self, streams: Sequence[Tensor], plan: BlockPlan) -> tuple[Tensor, ...]:
        """Their MLP branch."""
        return self.mlp(*streams)


def initialise(modules: Sequence[nn.Module], scheme: str) -> None:
    """Linear layers: "published" truncated normal 0.02, "xavier", or "torch" (as they are)."""
    for module in modules:
        if isinstance(module, nn.Linear) and scheme != "torch":
            if scheme == "published":
                nn.init.trunc_normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
